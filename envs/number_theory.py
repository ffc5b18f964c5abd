"""Number theory: greatest common divisors, powers and inverses mod n, prime factors, divisors, next primes.

A level adds a digit or so to the numbers.
"""

from __future__ import annotations

import math
from random import Random

from envs.generated import Family, GeneratedTasks, Problem


def draw_gcd(rng: Random, level: int) -> Problem:
    common, size = rng.randint(2, 6 * level), 10**level
    a, b = (common * rng.randint(2, size) for _ in range(2))
    key = f"gcd:{min(a, b)}:{max(a, b)}"
    return Problem(f"What is the greatest common divisor of {a} and {b}?", str(math.gcd(a, b)), key)


def draw_power(rng: Random, level: int) -> Problem:
    base, exponent = rng.randint(2, 10 * level), rng.randint(2, 5 * 4**level)
    modulus = rng.randint(3, 10 * 2**level)
    prompt = f"What is the remainder when {base}^{exponent} is divided by {modulus}?"
    return Problem(prompt, str(pow(base, exponent, modulus)), f"power:{base}:{exponent}:{modulus}")


def draw_inverse(rng: Random, level: int) -> Problem:
    while True:
        modulus, a = rng.randint(5, 12 * 3**level), rng.randint(2, 12 * 3**level)
        if 1 < a < modulus and math.gcd(a, modulus) == 1:
            break
    prompt = f"Which x with 0 < x < {modulus} satisfies {a}x ≡ 1 (mod {modulus})?"
    return Problem(prompt, str(pow(a, -1, modulus)), f"inverse:{a}:{modulus}")


def draw_largest_prime_factor(rng: Random, level: int) -> Problem:
    number = rng.randint(10 * 5**level, 20 * 8**level)
    return Problem(
        f"What is the largest prime factor of {number}?", str(prime_factors(number)[-1]), f"factor:{number}"
    )


def draw_divisors(rng: Random, level: int) -> Problem:
    number = rng.randint(6 * 3**level, 20 * 6**level)
    factors = prime_factors(number)
    count = math.prod(factors.count(p) + 1 for p in set(factors))
    return Problem(f"How many positive divisors does {number} have?", str(count), f"divisors:{number}")


def draw_next_prime(rng: Random, level: int) -> Problem:
    number = rng.randint(4 * 5**level, 10 * 10**level)
    prime = number + 1
    while prime_factors(prime) != [prime]:
        prime += 1
    return Problem(f"What is the smallest prime greater than {number}?", str(prime), f"prime:{number}")


def prime_factors(number: int) -> list[int]:
    """The prime factors of a number > 1 with multiplicity, in ascending order."""
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors


class NumberTheoryTasks(GeneratedTasks):
    name = "number_theory"
    FAMILIES = {
        "gcd": Family(draw_gcd),
        "power_mod": Family(draw_power),
        "inverse_mod": Family(draw_inverse),
        "prime_factor": Family(draw_largest_prime_factor),
        "divisors": Family(draw_divisors),
        "next_prime": Family(draw_next_prime),
    }
