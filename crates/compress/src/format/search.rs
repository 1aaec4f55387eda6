//! Chooses the scales of a block: least squares under the weights, over candidates, codes and scales in turn.
//!
//! For given codes the best scale (and minimum) follow in closed form; for a given scale the best codes are the nearest
//! levels. Each candidate scale gives codes, the codes' sums give the error that the best scale would leave, and the
//! least one is refined by turns. Integer factors of blocks of 256 are then chosen by the error they really leave.

use half::f16;

use super::{BLOCK, Effort, Format, Scales, Scaling};

/// Numbers smaller than this are zero to a block: their scale would not be one that f16 can hold.
const SMALLEST: f32 = 1e-12;

/// The levels of a format.
pub(crate) trait Levels: Copy {
    /// Whether the levels are sixteen of any kind.
    const IS_BOOK: bool;
    /// The level next to `x`.
    fn nearest(self, x: f32) -> f32;
    /// The code of the level next to `x`.
    fn code(self, x: f32) -> u8;
    /// Lowest and highest level.
    fn extent(self) -> (f32, f32);
}

/// All integers of a range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uniform {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

/// Sixteen levels of any kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Book {
    /// Ascending.
    pub(crate) levels: [f32; 16],
    /// Half-way between neighbours.
    pub(crate) bounds: [f32; 15],
    /// The code of each level.
    pub(crate) codes: [u8; 16],
}

impl Levels for Uniform {
    const IS_BOOK: bool = false;

    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        /// 1.5 × 2^23: what is added to it and taken away again is rounded to an integer, ties to even.
        const ROUNDER: f32 = 12_582_912.0;
        let x = if x > self.low { x } else { self.low };
        let x = if x < self.high { x } else { self.high };
        (x + ROUNDER) - ROUNDER
    }

    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        (self.nearest(x) - self.low) as u8
    }

    #[inline(always)]
    fn extent(self) -> (f32, f32) {
        (self.low, self.high)
    }
}

impl Book {
    /// A book whose code `i` stands for `levels[i]`.
    pub(crate) fn new(levels: [f32; 16]) -> Self {
        let mut codes: [u8; 16] = std::array::from_fn(|code| code as u8);
        codes.sort_by(|a, b| levels[usize::from(*a)].total_cmp(&levels[usize::from(*b)]));
        let levels = codes.map(|code| levels[usize::from(code)]);
        Book {
            levels,
            bounds: std::array::from_fn(|i| (levels[i] + levels[i + 1]) / 2.0),
            codes,
        }
    }
}

impl Levels for Book {
    const IS_BOOK: bool = true;

    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        let mut level = self.levels[0];
        for (index, bound) in self.bounds.iter().enumerate() {
            level = if x > *bound {
                self.levels[index + 1]
            } else {
                level
            };
        }
        level
    }

    #[inline(always)]
    fn code(self, x: f32) -> u8 {
        let mut position = 0;
        for bound in &self.bounds {
            position += usize::from(x > *bound);
        }
        self.codes[position]
    }

    #[inline(always)]
    fn extent(self) -> (f32, f32) {
        (self.levels[0], self.levels[15])
    }
}

/// Chooses the scales of one block, and its codes where they are wanted.
#[inline(always)]
pub(super) fn block(
    format: &Format,
    effort: Effort,
    x: &[f32],
    weights: &[f32],
    scales: &mut Scales,
    codes: Option<&mut [u8; BLOCK]>,
) {
    match (format.part, format.book()) {
        (32, Some(book)) => parts::<32, _>(format, effort, book, x, weights, scales, codes),
        (16, _) => parts::<16, _>(format, effort, format.uniform(), x, weights, scales, codes),
        (32, None) => parts::<32, _>(format, effort, format.uniform(), x, weights, scales, codes),
        _ => parts::<256, _>(format, effort, format.uniform(), x, weights, scales, codes),
    }
}

#[inline(always)]
fn parts<const N: usize, L: Levels>(
    format: &Format,
    effort: Effort,
    levels: L,
    x: &[f32],
    weights: &[f32],
    scales: &mut Scales,
    codes: Option<&mut [u8; BLOCK]>,
) {
    let (x, weights) = (x.as_chunks::<N>().0, weights.as_chunks::<N>().0);
    match format.scaling {
        Scaling::Half => {
            let (scale, minimum) = choose(format.minimum, true, effort, levels, &x[0], &weights[0]);
            let scale = half(scale);
            let mut offset = -minimum;
            if format.minimum && effort == Effort::Search {
                // The scale was rounded: what is added follows it.
                let sums = Sums::of(&x[0], &weights[0], scale, -offset, levels);
                offset = (sums.x - scale * sums.q) / sums.w.max(f32::MIN_POSITIVE);
            }
            let offset = half(offset);
            scales.block = [scale, offset];
            (scales.scales[0], scales.minima[0]) = (scale, -offset);
        }
        Scaling::Exponent => {
            let scale = power(levels, &x[0], &weights[0], effort);
            scales.block[0] = scale;
            scales.scales[0] = scale;
        }
        Scaling::Factors { low, high } => {
            let mut free = [(0.0, 0.0); 16];
            for ((free, x), weights) in free.iter_mut().zip(x).zip(weights) {
                *free = choose(format.minimum, false, effort, levels, x, weights);
            }
            let free = &free[..x.len()];
            match format.minimum {
                true => pairs(free, high, scales),
                false => factors(free, low, high, scales),
            }
            if effort == Effort::Search {
                let rounds = if high < 63 { 3 } else { 2 };
                for _ in 0..rounds {
                    refine(format.minimum, low, high, levels, x, weights, scales);
                }
            }
        }
    }
    if let Some(codes) = codes {
        for (part, (x, codes)) in x.iter().zip(codes.as_chunks_mut::<N>().0).enumerate() {
            let (scale, minimum) = (scales.scales[part], scales.minima[part]);
            let inverse = inverse(scale);
            for (code, x) in codes.iter_mut().zip(x) {
                *code = levels.code((x + minimum) * inverse);
            }
        }
    }
}

/// Scale and minimum of one part, as if both were free.
#[inline(always)]
fn choose<const N: usize, L: Levels>(
    minimum: bool,
    any_sign: bool,
    effort: Effort,
    levels: L,
    x: &[f32; N],
    weights: &[f32; N],
) -> (f32, f32) {
    match minimum {
        true => with_minimum(any_sign, effort, levels, x, weights),
        false => (symmetric(effort, levels, x, weights), 0.0),
    }
}

#[inline(always)]
fn symmetric<const N: usize, L: Levels>(
    effort: Effort,
    levels: L,
    x: &[f32; N],
    weights: &[f32; N],
) -> f32 {
    let (low, high) = levels.extent();
    let (least, most) = range(x);
    let extreme = if -least > most { least } else { most };
    if extreme.abs() < SMALLEST {
        return 0.0;
    }
    let even = high == -low;
    let plain = if even {
        extreme.abs() / high
    } else {
        extreme / low
    };
    if effort == Effort::Nearest {
        return plain;
    }
    // How far the extreme may lie from the last level, in steps between levels.
    let step = (high - low) / if L::IS_BOOK { 15.0 } else { high - low };
    let (from, count, by) = match high - low {
        wide if !L::IS_BOOK && wide > 100.0 => (-1, 3, 0.4),
        wide if !L::IS_BOOK && wide > 40.0 => (-4, 9, 0.2),
        _ => (-6, 15, 0.15),
    };
    let mut best = (0.0, plain);
    let mut consider = |inverse: f32, levels: L| {
        let sums = Sums::symmetric(x, weights, inverse, levels);
        // The error that the best scale leaves is Σ w x² less this.
        let gain = sums.xq * sums.xq * inverse_positive(sums.qq);
        if gain > best.0 {
            best = (gain, sums.xq / sums.qq);
        }
    };
    let directions = if even { 1 } else { 2 };
    for direction in 0..directions {
        let last = if even || direction == 1 { high } else { low };
        let reach = if even { extreme.abs() } else { extreme };
        for candidate in from..from + count {
            let last = last + last.signum() * step * by * candidate as f32;
            consider(last / reach, levels);
        }
    }
    for _ in 0..2 {
        let scale = best.1;
        let sums = Sums::symmetric(x, weights, inverse(scale), levels);
        let gain = sums.xq * sums.xq * inverse_positive(sums.qq);
        if gain <= best.0 {
            break;
        }
        best = (gain, sums.xq / sums.qq);
    }
    best.1
}

/// Scale and minimum; the minimum is not negative unless it may have any sign.
#[inline(always)]
fn with_minimum<const N: usize, L: Levels>(
    any_sign: bool,
    effort: Effort,
    levels: L,
    x: &[f32; N],
    weights: &[f32; N],
) -> (f32, f32) {
    let (_, high) = levels.extent();
    let (mut least, most) = range(x);
    if !any_sign && least > 0.0 {
        least = 0.0;
    }
    let width = most - least;
    if width < SMALLEST {
        // All are equal: the minimum says it all, where it can.
        return (0.0, if any_sign || least < 0.0 { -least } else { 0.0 });
    }
    let plain = (width / high, -least);
    if effort == Effort::Nearest {
        return plain;
    }
    let mut best = (
        Sums::of(x, weights, plain.0, plain.1, levels).error(plain.0, -plain.1),
        plain,
    );
    let consider = |inverse: f32, minimum: f32, best: &mut (f32, (f32, f32))| {
        let sums = Sums::with(x, weights, inverse, minimum, levels);
        let (scale, offset) = sums.best(any_sign);
        let error = sums.error(scale, offset);
        if scale > 0.0 && error < best.0 {
            *best = (error, (scale, -offset));
        }
    };
    let (count, by) = if high < 4.0 { (18, 0.1) } else { (13, 0.15) };
    for candidate in 0..count {
        let levels = high + by * (candidate as f32 - 0.6 * count as f32);
        consider(levels / width, -least, &mut best);
    }
    for _ in 0..3 {
        let (error, (scale, minimum)) = best;
        consider(inverse(scale), minimum, &mut best);
        if best.0 >= error {
            break;
        }
    }
    best.1
}

/// The power of two, doubled numbers as MXFP4 has them.
#[inline(always)]
fn power<const N: usize, L: Levels>(
    levels: L,
    x: &[f32; N],
    weights: &[f32; N],
    effort: Effort,
) -> f32 {
    let (least, most) = range(x);
    let largest = most.max(-least);
    if largest < 1e-30 {
        return f32::from_bits(0x0020_0000);
    }
    // The largest number becomes one of the levels 8 and 12 (4 and 6 of E2M1).
    let plain = (largest / 8.0).log2().floor().clamp(-120.0, 120.0);
    let mut best = (f32::INFINITY, plain.exp2());
    if effort == Effort::Nearest {
        return best.1;
    }
    for shift in [0.0, 1.0, -1.0] {
        let scale = (plain + shift).exp2();
        let error = error(x, weights, scale, 0.0, levels);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// Rounds free scales to integer factors of one number.
#[inline(always)]
fn factors(free: &[(f32, f32)], low: i16, high: i16, scales: &mut Scales) {
    let mut extreme = 0.0f32;
    for (scale, _) in free {
        if scale.abs() > extreme.abs() {
            extreme = *scale;
        }
    }
    let unit = half(extreme / f32::from(low));
    let inverse = inverse(unit);
    scales.block[0] = unit;
    for (part, (scale, _)) in free.iter().enumerate() {
        let factor = (scale * inverse).round() as i16;
        set_factor(scales, part, factor.clamp(low, high));
    }
}

/// Rounds free scales and minima to integer factors of two numbers.
#[inline(always)]
fn pairs(free: &[(f32, f32)], high: i16, scales: &mut Scales) {
    let (mut scale, mut minimum) = (0.0f32, 0.0f32);
    for free in free {
        scale = scale.max(free.0);
        minimum = minimum.max(free.1);
    }
    scales.block = [
        half_above(scale / f32::from(high)),
        half_above(minimum / f32::from(high)),
    ];
    let inverses = scales.block.map(inverse);
    for (part, free) in free.iter().enumerate() {
        let factor = (free.0 * inverses[0]).round() as i16;
        let minimum = (free.1 * inverses[1]).round() as i16;
        set_factor(scales, part, factor.clamp(0, high));
        set_minimum(scales, part, minimum.clamp(0, high));
    }
}

/// Each part's factors are exchanged for neighbours that leave a smaller error, then the block's numbers for those that
/// suit the codes best.
#[inline(always)]
fn refine<const N: usize, L: Levels>(
    minimum: bool,
    low: i16,
    high: i16,
    levels: L,
    x: &[[f32; N]],
    weights: &[[f32; N]],
    scales: &mut Scales,
) {
    let mut before = 0.0;
    // Sums of the least-squares fit of the two numbers of the block.
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
    for (part, (x, weights)) in x.iter().zip(weights).enumerate() {
        let (factor, least) = (scales.factors[part], scales.minimum_factors[part]);
        let mut best = (f32::INFINITY, factor, least);
        let spread: &[i16] = if minimum { &[0, -1, 1] } else { &[0] };
        for &shift in spread {
            let tried_minimum = least + shift;
            if !(0..=high).contains(&tried_minimum) {
                continue;
            }
            for shift in [0, -1, 1] {
                let tried = factor + shift;
                if tried < low || tried > high {
                    continue;
                }
                let scale = scales.block[0] * f32::from(tried);
                let offset = scales.block[1] * f32::from(tried_minimum);
                let error = error(x, weights, scale, offset, levels);
                if error < best.0 {
                    best = (error, tried, tried_minimum);
                }
            }
        }
        before += best.0;
        set_factor(scales, part, best.1);
        if minimum {
            set_minimum(scales, part, best.2);
        }
        let (scale, offset) = (scales.scales[part], scales.minima[part]);
        let sums = Sums::of(x, weights, scale, offset, levels);
        let (f, g) = (f32::from(best.1), f32::from(best.2));
        aa += f * f * sums.qq;
        ab -= f * g * sums.q;
        bb += g * g * sums.w;
        ax += f * sums.xq;
        bx -= g * sums.x;
    }
    let determinant = aa * bb - ab * ab;
    let fitted = if minimum && bb > 0.0 && determinant > 1e-6 * aa * bb {
        [
            (ax * bb - bx * ab) / determinant,
            (aa * bx - ab * ax) / determinant,
        ]
    } else {
        [
            (ax - scales.block[1] * ab) * inverse_positive(aa),
            scales.block[1],
        ]
    };
    if minimum && (fitted[0] <= 0.0 || fitted[1] < 0.0) {
        return;
    }
    let kept = scales.clone();
    scales.block = fitted.map(half);
    let mut after = 0.0;
    for (part, (x, weights)) in x.iter().zip(weights).enumerate() {
        set_factor(scales, part, kept.factors[part]);
        if minimum {
            set_minimum(scales, part, kept.minimum_factors[part]);
        }
        after += error(x, weights, scales.scales[part], scales.minima[part], levels);
    }
    if after > before {
        *scales = kept;
    }
}

#[inline(always)]
fn set_factor(scales: &mut Scales, part: usize, factor: i16) {
    scales.factors[part] = factor;
    scales.scales[part] = scales.block[0] * f32::from(factor);
}

#[inline(always)]
fn set_minimum(scales: &mut Scales, part: usize, factor: i16) {
    scales.minimum_factors[part] = factor;
    scales.minima[part] = scales.block[1] * f32::from(factor);
}

/// Weighted sums over a part: of the numbers `x` and their levels `q`.
struct Sums {
    w: f32,
    x: f32,
    xx: f32,
    q: f32,
    qq: f32,
    xq: f32,
}

impl Sums {
    /// With the levels next to `(x + minimum) / scale`.
    #[inline(always)]
    fn of<const N: usize, L: Levels>(
        x: &[f32; N],
        weights: &[f32; N],
        scale: f32,
        minimum: f32,
        levels: L,
    ) -> Sums {
        Sums::with(x, weights, inverse(scale), minimum, levels)
    }

    #[inline(always)]
    fn with<const N: usize, L: Levels>(
        x: &[f32; N],
        weights: &[f32; N],
        inverse: f32,
        minimum: f32,
        levels: L,
    ) -> Sums {
        let mut sums = [[0.0f32; 8]; 6];
        let blocks = x.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0);
        for (x, w) in blocks {
            for lane in 0..8 {
                let q = levels.nearest((x[lane] + minimum) * inverse);
                let (wx, wq) = (w[lane] * x[lane], w[lane] * q);
                sums[0][lane] += w[lane];
                sums[1][lane] += wx;
                sums[2][lane] += wx * x[lane];
                sums[3][lane] += wq;
                sums[4][lane] += wq * q;
                sums[5][lane] += wx * q;
            }
        }
        let [w, x, xx, q, qq, xq] = sums.map(total);
        Sums {
            w,
            x,
            xx,
            q,
            qq,
            xq,
        }
    }

    /// Only what a scale alone needs.
    #[inline(always)]
    fn symmetric<const N: usize, L: Levels>(
        x: &[f32; N],
        weights: &[f32; N],
        inverse: f32,
        levels: L,
    ) -> Sums {
        let mut sums = [[0.0f32; 8]; 2];
        let blocks = x.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0);
        for (x, w) in blocks {
            for lane in 0..8 {
                let q = levels.nearest(x[lane] * inverse);
                let wq = w[lane] * q;
                sums[0][lane] += wq * q;
                sums[1][lane] += wq * x[lane];
            }
        }
        let [qq, xq] = sums.map(total);
        Sums {
            w: 0.0,
            x: 0.0,
            xx: 0.0,
            q: 0.0,
            qq,
            xq,
        }
    }

    /// The best scale and what is added.
    #[inline(always)]
    fn best(&self, any_sign: bool) -> (f32, f32) {
        let determinant = self.w * self.qq - self.q * self.q;
        let alone = (self.xq * inverse_positive(self.qq), 0.0);
        if determinant <= 1e-7 * self.w * self.qq {
            return alone;
        }
        let scale = (self.w * self.xq - self.q * self.x) / determinant;
        let offset = (self.qq * self.x - self.q * self.xq) / determinant;
        if offset > 0.0 && !any_sign {
            return alone;
        }
        (scale, offset)
    }

    /// Σ w (x - scale q - offset)².
    #[inline(always)]
    fn error(&self, scale: f32, offset: f32) -> f32 {
        self.xx - 2.0 * (scale * self.xq + offset * self.x)
            + scale * scale * self.qq
            + 2.0 * scale * offset * self.q
            + offset * offset * self.w
    }
}

/// Σ w (x - value of its level)².
#[inline(always)]
fn error<const N: usize, L: Levels>(
    x: &[f32; N],
    weights: &[f32; N],
    scale: f32,
    minimum: f32,
    levels: L,
) -> f32 {
    let inverse = inverse(scale);
    let mut sums = [0.0f32; 8];
    for (x, w) in x.as_chunks::<8>().0.iter().zip(weights.as_chunks::<8>().0) {
        for lane in 0..8 {
            let shifted = x[lane] + minimum;
            let rest = shifted - scale * levels.nearest(shifted * inverse);
            sums[lane] += w[lane] * rest * rest;
        }
    }
    total(sums)
}

#[inline(always)]
fn total(lanes: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

#[inline(always)]
fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    let mut least = [f32::INFINITY; 8];
    let mut most = [f32::NEG_INFINITY; 8];
    for x in x.as_chunks::<8>().0 {
        for lane in 0..8 {
            least[lane] = if x[lane] < least[lane] {
                x[lane]
            } else {
                least[lane]
            };
            most[lane] = if x[lane] > most[lane] {
                x[lane]
            } else {
                most[lane]
            };
        }
    }
    let mut out = (least[0], most[0]);
    for lane in 1..8 {
        out.0 = if least[lane] < out.0 {
            least[lane]
        } else {
            out.0
        };
        out.1 = if most[lane] > out.1 {
            most[lane]
        } else {
            out.1
        };
    }
    out
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale.abs() < f32::MIN_POSITIVE {
        0.0
    } else {
        1.0 / scale
    }
}

#[inline(always)]
fn inverse_positive(x: f32) -> f32 {
    if x > f32::MIN_POSITIVE { 1.0 / x } else { 0.0 }
}

/// The next f16 that is finite.
#[inline(always)]
fn half(x: f32) -> f32 {
    f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32()
}

/// The next f16 that is not below, so that factors of it reach.
#[inline(always)]
fn half_above(x: f32) -> f32 {
    let rounded = f16::from_f32(x.clamp(0.0, 65504.0));
    match rounded.to_f32() < x && rounded < f16::MAX {
        true => f16::from_bits(rounded.to_bits() + 1).to_f32(),
        false => rounded.to_f32(),
    }
}
