//! Every implementation of [`Simd`](super::Simd) against plain `f32` arithmetic.

use super::*;
use crate::testing::Rng;

struct Arithmetic<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl SimdOp for Arithmetic<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, b) = (s.load_slice(self.a), s.load_slice(self.b));
        let same = |got: S::F, want: &dyn Fn(f32, f32) -> f32, what: &str| {
            let got = s.lanes(got);
            for (lane, &got) in got[..S::LANES].iter().enumerate() {
                let want = want(self.a[lane], self.b[lane]);
                let (x, y) = (self.a[lane], self.b[lane]);
                assert!(
                    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                    "{what}({x}, {y}) = {got} but {want} is right"
                );
            }
        };
        same(s.add(a, b), &|a, b| a + b, "add");
        same(s.sub(a, b), &|a, b| a - b, "sub");
        same(s.mul(a, b), &|a, b| a * b, "mul");
        same(s.div(a, b), &|a, b| a / b, "div");
        same(s.sqrt(a), &|a, _| a.sqrt(), "sqrt");
        same(s.abs(a), &|a, _| a.abs(), "abs");
        same(s.neg(a), &|a, _| -a, "neg");
        same(s.copysign(a, b), &|a, b| a.copysign(b), "copysign");
        same(s.floor(a), &|a, _| a.floor(), "floor");
        same(s.ceil(a), &|a, _| a.ceil(), "ceil");
        same(s.round_even(a), &|a, _| a.round_ties_even(), "round_even");
        same(s.at_least(a, s.splat(0.5)), &|a, _| if a < 0.5 { 0.5 } else { a }, "at_least");
        same(s.at_most(a, s.splat(0.5)), &|a, _| if a > 0.5 { 0.5 } else { a }, "at_most");
        same(s.select(s.lt(a, b), a, b), &|a, b| if a < b { a } else { b }, "lt, select");
        same(s.select(s.eq(a, b), a, s.neg(b)), &|a, b| if a == b { a } else { -b }, "eq, select");
        let bits = s.bits(a);
        same(s.as_float(s.shr_i::<3>(bits)), &|a, _| f32::from_bits((a.to_bits() as i32 >> 3) as u32), "shr");
        same(s.as_float(s.shl_i::<5>(bits)), &|a, _| f32::from_bits(a.to_bits() << 5), "shl");
        same(
            s.as_float(s.and_i(bits, s.splat_i(0x7f_ffff))),
            &|a, _| f32::from_bits(a.to_bits() & 0x7f_ffff),
            "and",
        );
        let small = s.at_most(s.at_least(a, s.splat(-1e6)), s.splat(1e6));
        let clamped = |a: f32| a.clamp(-1e6, 1e6);
        if self.a.iter().all(|x| !x.is_nan()) {
            same(s.to_float(s.to_int(small)), &|a, _| clamped(a).round_ties_even() + 0.0, "to_int");
        }
    }
}

struct Partial;

impl SimdOp for Partial {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values: Vec<f32> = (1..=16_u8).map(f32::from).collect();
        for count in 0..=S::LANES {
            let x = s.lanes(s.load_tail(&values[..count]));
            for (lane, &x) in x[..S::LANES].iter().enumerate() {
                assert_eq!(x, if lane < count { values[lane] } else { 0.0 });
            }
            let mut out = [-1.0; 20];
            s.store_tail(&mut out[2..2 + count], s.load_slice(&values));
            for (i, &x) in out.iter().enumerate() {
                assert_eq!(x, if (2..2 + count).contains(&i) { values[i - 2] } else { -1.0 });
            }
        }
        let sum: f32 = values[..S::LANES].iter().sum();
        assert_eq!(s.sum_lanes(s.load_slice(&values)), sum);
    }
}

#[test]
fn arithmetic_equals_plain_f32_on_every_instruction_set() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -2.5,
        0.5,
        1.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        -7.25,
        1e-39,
        123_456.79,
        -0.75,
        3.0,
    ];
    for isa in VectorIsa::all_available() {
        isa.run(Arithmetic { a: &special, b: &[0.5; 16] });
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let a = rng.floats(16, -100.0, 100.0);
            let b = rng.floats(16, -100.0, 100.0);
            isa.run(Arithmetic { a: &a, b: &b });
        }
    }
}

#[test]
fn partial_loads_and_stores_touch_only_their_lanes() {
    for isa in VectorIsa::all_available() {
        isa.run(Partial);
    }
}

struct Bytes;

impl SimdOp for Bytes {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values: Vec<i8> = (0..16).map(|i| (i * 17 - 128_i32) as i8).collect();
        for count in 0..=S::LANES {
            // SAFETY: 16 values, and 20 places of which the store starts at the second.
            let (x, out) = unsafe {
                let x = s.load_i8(values.as_ptr(), count);
                let mut out = [99_i8; 20];
                s.store_i8(out.as_mut_ptr().add(2), count, x);
                (s.lanes(s.to_float(x)), out)
            };
            for lane in 0..S::LANES {
                assert_eq!(x[lane], if lane < count { f32::from(values[lane]) } else { 0.0 });
            }
            for (i, &x) in out.iter().enumerate() {
                assert_eq!(x, if (2..2 + count).contains(&i) { values[i - 2] } else { 99 });
            }
        }
        let mut rounded =
            vec![0.5, 1.5, 2.5, 126.5, 0.5_f32.next_down(), 1.5_f32.next_down(), 0.0, 4_000_000.5];
        rounded.extend(rounded.clone().iter().map(|x| -x));
        for from in rounded.chunks_exact(S::LANES.min(8)) {
            let x: Vec<f32> = from.iter().copied().cycle().take(16).collect();
            let got = s.lanes(s.to_float(s.round_away(s.load_slice(&x))));
            for lane in 0..S::LANES {
                assert_eq!(got[lane], x[lane].round(), "{}", x[lane]);
            }
        }
    }
}

#[test]
fn bytes_are_widened_narrowed_and_rounded_away_from_zero() {
    for isa in VectorIsa::all_available() {
        isa.run(Bytes);
    }
}
