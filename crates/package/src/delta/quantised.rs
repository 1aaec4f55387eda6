//! A quantised tensor, given the old version of it.
//!
//! A weight that moved by `e` moves its code only when it crosses the border to the next code. What says how probable that is:
//!
//! - where the old code's value lies on the new block's grid (its distance from the centre of the nearest code): the factors of a
//!   block are coded first, and they give it exactly;
//! - how far weights move compared with the width of a code: estimated from what was already coded of the same column, the same
//!   row and the whole tensor;
//! - whether the code is the smallest or the largest: it cannot leave on that side, and the block's extremes sit there.
//!
//! Three such contexts each give a probability, which are mixed.

use super::block::{Block, Layout, float_to_half, half_from_order, half_order, half_to_float};
use super::coder::{Bit, Coder, MixedNumbers, Mixer, Numbers};

/// Half octaves from 2⁻¹² upwards.
const LEVELS: usize = 32;
/// Places around a code's centre, closer together near it, and one for a grid that did not move.
const PLACES: usize = 24;
/// Steps of a code that are counted one by one.
const STEPS: usize = 16;

/// Contexts for one layout, and what is known of the tensor at hand.
pub(super) struct Quantised {
    layout: Layout,
    blocks_per_row: usize,
    /// Whether groups without any step are marked as such.
    marks: bool,
    /// Block within the row.
    block: usize,
    codes: Movement,
    groups: Vec<f32>,
    halves: [Movement; 2],
    /// Whether the groups of the row above had a step.
    above: Vec<bool>,
    left: bool,
    trend: Trend,

    half_models: [MixedNumbers<3>; 2],
    sub_models: [Numbers; 2],
    mark_levels: Vec<Bit>,
    mark_neighbours: Vec<Bit>,
    mark_mixer: Vec<Mixer<2>>,
    zero_places: Vec<Bit>,
    zero_counts: Vec<Bit>,
    zero_codes: Vec<Bit>,
    zero_trends: Vec<Bit>,
    zero_mixer: Vec<Mixer<4>>,
    sign_places: Vec<Bit>,
    sign_neighbours: Vec<Bit>,
    sign_mixer: Vec<Mixer<2>>,
    steps: Vec<Bit>,
    far: Numbers,
}

/// How far things move: by column, in this row, on the whole. Units are those of the weights.
struct Movement {
    columns: Vec<f32>,
    row: f32,
    mean: f32,
    /// Groups that were seen of the row, of the tensor; how much a column has seen.
    seen_in_row: f32,
    seen: f32,
    column_rate: f32,
}

impl Movement {
    fn new() -> Self {
        Movement {
            columns: Vec::new(),
            row: 0.0,
            mean: 0.0,
            seen_in_row: 0.0,
            seen: 0.0,
            column_rate: 0.0,
        }
    }

    fn start(&mut self, columns: usize) {
        self.columns.clear();
        self.columns.resize(columns, self.mean);
        self.row = self.mean;
        self.seen = 4.0;
        self.seen_in_row = ROW_PRIOR;
        self.column_rate = 1.0 / 8.0;
    }

    /// What to multiply a column's movement with.
    #[inline]
    fn factor(&self) -> f32 {
        self.row / self.mean.max(1e-20)
    }

    #[inline]
    fn learn(&mut self, moved: f32) {
        self.seen_in_row += 1.0;
        self.row += (moved - self.row) / self.seen_in_row.min(32.0);
        self.seen += 1.0;
        self.mean += (moved - self.mean) / self.seen.min(1024.0);
    }

    fn next_row(&mut self, slowest: f32) {
        self.row = 0.5 * (self.row + self.mean);
        self.seen_in_row = ROW_PRIOR;
        self.column_rate = (self.column_rate / (1.0 + self.column_rate)).max(slowest);
    }
}

/// How many groups the guess at the start of a row is worth.
const ROW_PRIOR: f32 = 4.0;
/// How slowly columns forget at last: factors tell much at once, codes little.
const HALF_COLUMN_RATE: f32 = 1.0 / 32.0;
const CODE_COLUMN_RATE: f32 = 1.0 / 256.0;

/// Which way weights move. The gradient of a layer is a sum of few products of a column's and a row's numbers; what all rows have
/// in common, and the strongest product, are followed from step to step.
#[derive(Default)]
struct Trend {
    /// Average direction of a column.
    common: Vec<f32>,
    /// A column's part of the product.
    product: Vec<f32>,
    /// This row's part of it so far.
    row: f32,
}

impl Trend {
    fn start(&mut self, columns: usize) {
        self.common = vec![0.0; columns];
        self.product = vec![0.0; columns];
        self.row = 0.0;
    }

    fn next_row(&mut self) {
        self.row = 0.0;
    }

    /// Both opinions on a column, from 0 (surely down) by 3 (none) to 6 (surely up).
    #[inline]
    fn opinions(&self, column: usize) -> (usize, usize) {
        (
            opinion(self.common[column]),
            opinion(self.product[column] * self.row * 0.5),
        )
    }

    #[inline]
    fn learn(&mut self, column: usize, up: bool) {
        let direction = if up { 1.0 } else { -1.0 };
        let common = &mut self.common[column];
        *common += (direction - *common) * 0.15;
        let product = &mut self.product[column];
        let row = if self.row == 0.0 {
            1.0
        } else {
            self.row.clamp(-1.0, 1.0)
        };
        let agreement = direction * *product;
        *product += (direction * row - *product) * 0.15 * row.abs().max(0.1);
        self.row = (self.row + agreement * 0.5).clamp(-3.0, 3.0);
    }
}

#[inline]
fn opinion(value: f32) -> usize {
    let strength = usize::from(value.abs() > 0.12)
        + usize::from(value.abs() > 0.35)
        + usize::from(value.abs() > 0.65);
    if value < 0.0 {
        3 - strength
    } else {
        3 + strength
    }
}

impl Quantised {
    pub fn new(layout: Layout) -> Self {
        let bits = |count: usize| vec![Bit::default(); count];
        Quantised {
            layout,
            blocks_per_row: 1,
            marks: false,
            block: 0,
            codes: Movement::new(),
            groups: Vec::new(),
            halves: [Movement::new(), Movement::new()],
            above: Vec::new(),
            left: false,
            trend: Trend::default(),
            half_models: [
                MixedNumbers::new(LEVELS * 4, 49 * 3),
                MixedNumbers::new(LEVELS * 4, 49 * 3),
            ],
            sub_models: [
                Numbers::new(PLACES * 2, PLACES),
                Numbers::new(PLACES * 2, PLACES),
            ],
            mark_levels: bits(LEVELS * 2),
            mark_neighbours: bits(LEVELS * 8),
            mark_mixer: vec![Mixer::default(); 2],
            zero_places: bits(PLACES * LEVELS * 5),
            zero_counts: bits(PLACES * LEVELS * 6),
            zero_codes: bits(16 * 2 * LEVELS),
            zero_trends: bits(3 * 49 * LEVELS),
            zero_mixer: vec![Mixer::default(); LEVELS],
            sign_places: bits(PLACES * LEVELS * 5),
            sign_neighbours: bits(PLACES * 49),
            sign_mixer: vec![Mixer::default(); 1],
            steps: bits(STEPS * LEVELS),
            far: Numbers::new(1, 1),
        }
    }

    /// Prepares for a tensor with rows of `row` weights.
    pub fn start(&mut self, row: usize, marks: bool) {
        self.blocks_per_row = (row / self.layout.weights()).max(1);
        let groups = self.blocks_per_row * (self.layout.weights() / self.layout.group());
        self.marks = marks;
        self.block = 0;
        self.codes
            .start(self.blocks_per_row * self.layout.weights());
        self.groups = vec![self.codes.mean; groups];
        self.halves
            .iter_mut()
            .for_each(|movement| movement.start(self.blocks_per_row));
        self.above = vec![false; groups];
        self.left = false;
        self.trend.start(self.codes.columns.len());
    }

    /// Whether marks pay for two versions of a tensor: they do when many groups keep all their codes.
    pub fn marks_pay(layout: Layout, old: &[u8], new: &[u8]) -> bool {
        let (mut a, mut b) = ([0; 256], [0; 256]);
        let (mut kept, mut all) = (0, 0);
        let bytes = layout.block_bytes();
        for (old, new) in old
            .chunks_exact(bytes)
            .zip(new.chunks_exact(bytes))
            .step_by(7)
        {
            layout.read_codes(old, &mut a);
            layout.read_codes(new, &mut b);
            for (a, b) in a[..layout.weights()]
                .chunks(layout.group())
                .zip(b.chunks(layout.group()))
            {
                kept += usize::from(a == b);
                all += 1;
            }
        }
        kept * 4 >= all
    }

    /// Codes whole blocks; the decoder fills `new`.
    pub fn blocks<C: Coder>(&mut self, coder: &mut C, old: &[u8], new: &mut [u8]) {
        let bytes = self.layout.block_bytes();
        let (mut old_block, mut new_block) = (Block::default(), Block::default());
        for (old, new) in old.chunks_exact(bytes).zip(new.chunks_exact_mut(bytes)) {
            self.one_block(coder, &mut old_block, &mut new_block, old, new);
            self.block += 1;
            if self.block == self.blocks_per_row {
                self.block = 0;
                self.left = false;
                self.trend.next_row();
                self.codes.next_row(CODE_COLUMN_RATE);
                self.halves
                    .iter_mut()
                    .for_each(|movement| movement.next_row(HALF_COLUMN_RATE));
            }
        }
    }

    fn one_block<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &mut Block,
        new: &mut Block,
        old_bytes: &[u8],
        new_bytes: &mut [u8],
    ) {
        let layout = self.layout;
        layout.read_factors(old_bytes, old);
        layout.read_codes(old_bytes, &mut old.codes);
        if C::DECODES {
            new.halves = old.halves;
            new.subs = old.subs;
        } else {
            layout.read_factors(new_bytes, new);
            layout.read_codes(new_bytes, &mut new.codes);
        }
        let same_halves = self.code_halves(coder, old, new);
        let same_subs = self.code_subs(coder, old, new, same_halves);
        let mut same_codes = true;
        for group in 0..layout.weights() / layout.group() {
            same_codes &= self.code_group(coder, old, new, group, same_halves);
        }
        if C::DECODES {
            if same_halves && same_subs && same_codes {
                new_bytes.copy_from_slice(old_bytes);
            } else {
                layout.write(new, new_bytes);
            }
        }
    }

    /// Minimum first where there is one: with it, the old maximum predicts the new scale.
    fn code_halves<C: Coder>(&mut self, coder: &mut C, old: &Block, new: &mut Block) -> bool {
        let mut residual_before = 0_i32;
        let mut distance_before = 0.0;
        for which in (0..self.layout.halves()).rev() {
            let extreme = self.extreme(which, old);
            let trend = extreme.map_or(24, |(column, rises)| {
                let (common, product) = self.trend.opinions(column);
                let trend = 7 * common + product;
                if rises { trend } else { 48 - trend }
            });
            let predicted = self.predict_half(which, old, new);
            let order = half_order(predicted);
            let unit = (half_to_float(half_from_order(order + 1)) - half_to_float(predicted))
                .abs()
                .max(1e-9);
            let movement = &self.halves[which];
            let expected = movement.columns[self.block] * movement.factor();
            let size_before = level(distance_before * (1.0 / 64.0));
            let second = usize::from(residual_before != 0);
            let contexts = [
                2 * level(expected / unit) + second,
                2 * level(movement.mean / unit) + second,
                2 * level(movement.row / unit)
                    + second
                    + 2 * LEVELS * usize::from(size_before > LEVELS / 2),
            ];
            let residual = half_order(new.halves[which]) - order;
            let zero = self.half_models[which].zero(coder, contexts, residual == 0);
            let residual = if zero {
                0
            } else {
                let sign_context = 3 * trend + (residual_before.signum() + 1) as usize;
                self.half_models[which].other(coder, contexts, sign_context, residual)
            };
            new.halves[which] = half_from_order(order.wrapping_add(residual));
            let moved = residual.unsigned_abs().min(4096) as f32 * unit;
            if let Some((column, rises)) = extreme
                && residual != 0
            {
                self.trend.learn(column, (residual > 0) == rises);
            }
            let movement = &mut self.halves[which];
            let column = &mut movement.columns[self.block];
            *column += (moved - *column) * movement.column_rate;
            distance_before = moved / expected.max(1e-20);
            movement.learn(moved);
            residual_before = residual;
        }
        old.halves == new.halves
    }

    /// The column of the weight that sets a factor, and whether the factor rises with it: the smallest weight sets the minimum,
    /// the largest one the scale.
    fn extreme(&self, which: usize, old: &Block) -> Option<(usize, bool)> {
        let largest = self.layout.largest_code();
        let codes = &old.codes[..self.layout.weights()];
        let at = match self.layout {
            Layout::Q4_1 | Layout::Q5_1 if which == 1 => codes.iter().position(|code| *code == 0),
            Layout::Q4_1 | Layout::Q5_1 => {
                codes.iter().position(|code| i32::from(*code) == largest)
            }
            Layout::Q8_0 => codes.iter().position(|code| matches!(code, 1 | 255)),
            _ => None,
        }?;
        let rises = self.layout != Layout::Q8_0 || codes[at] == 255;
        Some((self.block * self.layout.weights() + at, rises))
    }

    fn predict_half(&self, which: usize, old: &Block, new: &Block) -> u16 {
        match self.layout {
            Layout::Q4_1 | Layout::Q5_1 if which == 0 && old.halves[1] != new.halves[1] => {
                let top = self.layout.largest_code() as f32;
                let maximum = half_to_float(old.halves[1]) + top * half_to_float(old.halves[0]);
                let predicted = (maximum - half_to_float(new.halves[1])) / top;
                if predicted.is_finite() {
                    float_to_half(predicted)
                } else {
                    old.halves[0]
                }
            }
            _ => old.halves[which],
        }
    }

    fn code_subs<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &Block,
        new: &mut Block,
        same_halves: bool,
    ) -> bool {
        let scales = self.layout.sub_scales();
        let kinds = 1 + usize::from(self.layout.has_minima());
        let largest = self.layout.largest_sub();
        let mut same = true;
        for kind in 0..if scales == 0 { 0 } else { kinds } {
            let ratio = half_to_float(old.halves[kind]) / half_to_float(new.halves[kind]);
            let centre = match self.layout {
                Layout::Q3K => 32.0,
                Layout::Q6K => 128.0,
                _ => 0.0,
            };
            for i in kind * scales..(kind + 1) * scales {
                let unmoved = old.halves[kind] == new.halves[kind];
                let exact = if unmoved {
                    f32::from(old.subs[i])
                } else {
                    (f32::from(old.subs[i]) - centre) * ratio + centre
                };
                let (predicted, place) = nearest(exact, largest, unmoved);
                let context = 2 * place + usize::from(same_halves);
                let residual = i64::from(i32::from(new.subs[i]) - predicted);
                let residual = self.sub_models[kind].signed(coder, context, place, residual);
                new.subs[i] = (i64::from(predicted) + residual).clamp(0, largest.into()) as u8;
                same &= new.subs[i] == old.subs[i];
            }
        }
        same
    }

    /// Answers whether all codes of the group stayed.
    fn code_group<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &Block,
        new: &mut Block,
        group: usize,
        same_halves: bool,
    ) -> bool {
        let layout = self.layout;
        let size = layout.group();
        let start = group * size;
        let column = self.block * layout.weights() + start;
        let group_column = column / size;
        let largest = layout.largest_code();
        let (old_scale, old_offset) = layout.affine(old, group);
        let (scale, offset) = layout.affine(new, group);
        let unmoved = old_scale == scale && old_offset == offset;
        let shift = (old_offset - offset) / scale;
        let stretch = old_scale / scale;
        let width = scale.abs().max(1e-20);

        let mut predicted = [0_u8; 32];
        let mut places = [(PLACES - 1) as u8; 32];
        let old_codes = &old.codes[start..start + size];
        if unmoved {
            predicted[..size].copy_from_slice(old_codes);
        } else if largest <= 31 {
            // Few codes: each is looked at once.
            let (mut to, mut at) = ([0_u8; 32], [0_u8; 32]);
            for code in 0..=largest {
                let (near, place) = nearest(shift + stretch * code as f32, largest, false);
                (to[code as usize], at[code as usize]) = (near as u8, place as u8);
            }
            for (j, code) in old_codes.iter().enumerate() {
                let code = usize::from(code & 31);
                (predicted[j], places[j]) = (to[code], at[code]);
            }
        } else {
            for (j, code) in old_codes.iter().enumerate() {
                let (near, place) = nearest(shift + stretch * f32::from(*code), largest, false);
                (predicted[j], places[j]) = (near as u8, place as u8);
            }
        }

        let mut moved = 0.0;
        let factor = self.codes.factor() / width;
        let rate = self.codes.column_rate;
        let any = !self.marks || {
            let expected = level(self.groups[group_column] * factor);
            let neighbours = usize::from(self.above[group_column]) | usize::from(self.left) << 1;
            let average = level(self.codes.mean / width);
            let any = !C::DECODES && new.codes[start..start + size] != predicted[..size];
            self.mark_mixer[usize::from(same_halves)].code(
                coder,
                [
                    &mut self.mark_levels[2 * expected + usize::from(same_halves)],
                    &mut self.mark_neighbours
                        [8 * average + 2 * neighbours + usize::from(same_halves)],
                ],
                400,
                any,
            )
        };
        if any {
            moved = self.code_steps(coder, old, new, start, column, &predicted, &places, width);
        } else {
            new.codes[start..start + size].copy_from_slice(&predicted[..size]);
            self.codes.columns[column..column + size]
                .iter_mut()
                .for_each(|moved| *moved *= 1.0 - rate);
        }
        self.groups[group_column] += (moved - self.groups[group_column]) * 0.1;
        self.codes.learn(moved);
        let stepped = moved > 0.0;
        self.above[group_column] = stepped;
        self.left = stepped;
        new.codes[start..start + size] == old.codes[start..start + size]
    }

    /// Answers the average movement in the group.
    #[allow(clippy::too_many_arguments)]
    fn code_steps<C: Coder>(
        &mut self,
        coder: &mut C,
        old: &Block,
        new: &mut Block,
        start: usize,
        column: usize,
        predicted: &[u8; 32],
        places: &[u8; 32],
        width: f32,
    ) -> f32 {
        let layout = self.layout;
        let (size, largest) = (layout.group(), layout.largest_code());
        let factor = self.codes.factor() / width;
        let average = level(self.codes.mean / width);
        let rate = self.codes.column_rate;
        let half = &self.halves[layout.halves() - 1];
        let row = level(half.columns[self.block] * half.factor() / width);
        let old_codes = &old.codes[start..start + size];
        let lowest = old_codes.iter().filter(|code| **code == 0).count();
        let highest = old_codes
            .iter()
            .filter(|code| i32::from(**code) == largest)
            .count();
        let code_shift = (32 - largest.leading_zeros()).saturating_sub(4);
        let (mut stepped, mut stepped_before, mut sum) = (0_usize, false, 0_u32);
        for j in 0..size {
            let (base, place) = (i32::from(predicted[j]), usize::from(places[j]));
            let old_code = i32::from(old.codes[start + j]);
            let edge = match old_code {
                0 => 1 + usize::from(lowest > 1),
                _ if old_code == largest => 3 + usize::from(highest > 1),
                _ => 0,
            };
            // Whether the grid moved the code down, not at all, or up.
            let grid = usize::from(place < PLACES - 1)
                + usize::from(place > PLACE_EDGES.len() && place < PLACES - 1);
            let near = level(self.codes.columns[column + j] * factor);
            let (common, product) = self.trend.opinions(column + j);
            let step = i32::from(new.codes[start + j]) - base;
            let last_chance = self.marks && j + 1 == size && stepped == 0;
            let still = !last_chance
                && self.zero_mixer[average].code(
                    coder,
                    [
                        &mut self.zero_places[(place * LEVELS + near) * 5 + edge],
                        &mut self.zero_counts[(place * LEVELS + average) * 6
                            + 2 * stepped.min(2)
                            + usize::from(self.marks)],
                        &mut self.zero_codes[((old_code >> code_shift) as usize * 2
                            + usize::from(stepped_before))
                            * LEVELS
                            + row],
                        &mut self.zero_trends[((grid * 7 + common) * 7 + product) * LEVELS + near],
                    ],
                    1000,
                    step == 0,
                );
            let mut distance = 0;
            if !still {
                let neighbours = place * 49 + common * 7 + product;
                let up = self.sign_mixer[0].code(
                    coder,
                    [
                        &mut self.sign_places[(place * LEVELS + near) * 5 + edge],
                        &mut self.sign_neighbours[neighbours],
                    ],
                    1000,
                    step > 0,
                );
                self.trend.learn(column + j, up);
                distance = 1;
                while distance < STEPS as u32
                    && self.steps[(distance as usize - 1) * LEVELS + near]
                        .code(coder, step.unsigned_abs() > distance)
                {
                    distance += 1;
                }
                if distance == STEPS as u32 {
                    let more = self.far.unsigned(
                        coder,
                        0,
                        u64::from(step.unsigned_abs().saturating_sub(distance)),
                    );
                    distance += more.min(255) as u32;
                }
                let code = if up {
                    base + distance as i32
                } else {
                    base - distance as i32
                };
                new.codes[start + j] = code.clamp(0, largest) as u8;
                stepped += 1;
                sum += distance;
            } else {
                new.codes[start + j] = base as u8;
            }
            stepped_before = !still;
            let moved = &mut self.codes.columns[column + j];
            *moved += (distance as f32 * width - *moved) * rate;
        }
        sum as f32 * width / size as f32
    }
}

/// Distances from a code's centre that separate places, in 1/200.
const PLACE_EDGES: [u8; 10] = [1, 3, 6, 10, 15, 21, 30, 42, 60, 84];

/// By distance in 1/200: how many edges are passed.
const PLACE_OF: [u8; 85] = {
    let mut table = [0; 85];
    let mut distance = 0;
    while distance < table.len() {
        let mut edge = 0;
        while edge < PLACE_EDGES.len() && PLACE_EDGES[edge] as usize <= distance {
            edge += 1;
        }
        table[distance] = edge as u8;
        distance += 1;
    }
    table
};

/// The code nearest to `exact`, and where `exact` lies around it.
#[inline]
fn nearest(exact: f32, largest: i32, unmoved: bool) -> (i32, usize) {
    let inside = exact.clamp(0.0, largest as f32);
    let code = (inside + 0.5) as i32;
    if unmoved {
        return (code, PLACES - 1);
    }
    let off = exact - code as f32;
    let size = usize::from(PLACE_OF[((off.abs() * 200.0) as usize).min(PLACE_OF.len() - 1)]);
    (
        code,
        if off < 0.0 {
            size
        } else {
            PLACE_EDGES.len() + 1 + size
        },
    )
}

/// Half octaves above 2⁻¹².
#[inline]
fn level(ratio: f32) -> usize {
    let steps = (ratio.to_bits() >> 22) as i32 - ((127 - 12) << 1);
    steps.clamp(0, LEVELS as i32 - 1) as usize
}
