//! Special functions that the kernel library does not have, in double precision.

/// The complementary error function.
///
/// By the Maclaurin series of erf up to 2, by Lentz's continued fraction beyond; relative error below 1e-12.
pub(crate) fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < 2.0 {
        return if x < -6.0 { 2.0 } else { 1.0 - erf_series(x) };
    }
    // erfc(x) = exp(-x^2) / sqrt(pi) * 1 / (x + 1/2 / (x + 1 / (x + 3/2 / ...)))
    let tail = (1..=80).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    (-x * x).exp() / std::f64::consts::PI.sqrt() / tail
}

fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        let next = term / f64::from(2 * n + 1);
        sum += next;
        if next.abs() <= sum.abs() * 1e-17 {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The inverse error function on (-1, 1); infinite at the ends, NaN outside.
pub(crate) fn erfinv(y: f64) -> f64 {
    if !(-1.0..=1.0).contains(&y) {
        return f64::NAN;
    }
    if y.abs() == 1.0 {
        return y * f64::INFINITY;
    }
    // Winitzki's approximation, then Newton's steps on erf(x) - y.
    let (a, log) = (0.147, (1.0 - y * y).ln());
    let b = 2.0 / (std::f64::consts::PI * a) + log / 2.0;
    let mut x = ((b * b - log / a).sqrt() - b).sqrt().copysign(y);
    for _ in 0..4 {
        let error = if x >= 0.0 { (1.0 - y) - erfc(x) } else { erfc(-x) - (1.0 + y) };
        x -= error * (x * x).exp() / std::f64::consts::FRAC_2_SQRT_PI;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_matches_tables() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.9, 0.007_209_570_764_751_65),
            (2.5, 0.000_406_952_017_444_959),
            (-1.0, 1.842_700_792_949_715),
            (5.0, 1.537_459_794_428_035e-12),
        ] {
            assert!((erfc(x) - want).abs() <= 1e-10 * want, "erfc({x}) = {}", erfc(x));
        }
    }

    #[test]
    fn erfinv_inverts() {
        for y in [-0.999, -0.3, 0.0, 1e-6, 0.5, 0.99999] {
            let back = if y < 0.0 { erfc(-erfinv(y)) - 1.0 } else { 1.0 - erfc(erfinv(y)) };
            assert!((back - y).abs() < 1e-12, "{y} -> {back}");
        }
        assert!(erfinv(1.0).is_infinite() && erfinv(2.0).is_nan());
    }
}
