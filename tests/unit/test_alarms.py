from reasoner.alarms import collapse_alarm


def test_a_rising_or_wandering_pass_rate_is_no_alarm():
    assert collapse_alarm([i / 100 for i in range(100)]) is None
    assert collapse_alarm([0.9, 0.75] * 50) is None
    assert collapse_alarm([0.9] * 5 + [0.0] * 5) is None, "too short to tell"


def test_a_fall_is_said_with_both_numbers():
    message = collapse_alarm([0.9] * 30 + [0.5] * 10)
    assert message is not None and "from 0.90 to 0.50" in message
    assert collapse_alarm([0.9] * 30 + [0.71] * 10) is None
