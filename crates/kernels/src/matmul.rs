//! Matrix products: packed weights times activations.

use std::cell::RefCell;
use std::ops::Range;

use crate::activations::{Scaling, TILE, TokenTile};
use crate::arch::lanes::{Kernel, LANES, Lanes, dispatch};
use crate::arch::product::{
    Group, SplitGroup, Sums, TileKernel, float_tile, quantised_tile, split_tile,
};
use crate::arch::tiles::{DisjointTiles, Tile};
use crate::ops::{self, Activation};
use crate::packed::Line;
use crate::packed::layout::{BLOCK, GROUP};
use crate::schedule::{Reads, run_in_streams, run_reading};
use crate::{Activations, Isa, PackedForm, PackedMatrix, ThreadPool};

/// Multiply-accumulates of a piece of work with many tokens: some 50 µs.
const CHUNK_MACS: usize = 8 << 20;
/// Weights of a piece of work with few tokens, bytes: up to some 10 µs. Each piece interrupts a thread's stream.
const CHUNK_BYTES: Range<usize> = 32 << 10..256 << 10;
/// Tokens of a piece of work.
const CHUNK_TOKENS: usize = 64;

/// Width up to which a tile's products are bound by reading: both halves of a split matrix are multiplied as they lie, and
/// matrices are read one after the other.
const FEW: usize = 4;

/// Where a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// The threads.
    pub pool: &'a ThreadPool,
}

/// What is done with a product `W x`: `out = (accumulate ? out : 0) + scale * (W x + bias)`.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Shape `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// Factor of the product and the bias.
    pub scale: f32,
    /// Whether the result is added to what `out` holds.
    pub accumulate: bool,
}

impl Default for Epilogue<'_> {
    /// `out = W x`.
    fn default() -> Self {
        Epilogue {
            bias: None,
            scale: 1.0,
            accumulate: false,
        }
    }
}

/// One matrix of a [`matmul_group`].
#[derive(Debug)]
pub struct MatmulJob<'a> {
    /// The weights, [rows, columns].
    pub w: &'a PackedMatrix,
    /// [tokens, rows]
    pub out: &'a mut [f32],
    /// What is done with the product.
    pub epilogue: Epilogue<'a>,
}

/// `out = epilogue(W x)` for every token; `out` is [tokens, rows].
///
/// # Panics
/// If the shapes disagree.
pub fn matmul(
    context: &Context<'_>,
    w: &PackedMatrix,
    x: &Activations,
    out: &mut [f32],
    epilogue: &Epilogue<'_>,
) {
    let job = MatmulJob {
        w,
        out,
        epilogue: *epilogue,
    };
    matmul_group(context, &mut [job], x);
}

/// Several matrices times the same activations, as one job of the pool.
///
/// # Panics
/// If the shapes disagree.
pub fn matmul_group(context: &Context<'_>, jobs: &mut [MatmulJob<'_>], x: &Activations) {
    let threads = context.pool.threads();
    let mut end = 0;
    let planned: Vec<_> = jobs
        .iter_mut()
        .map(|job| {
            check(job.w, x, job.out, job.epilogue.bias);
            let plan = Plan::new(
                threads,
                x.tokens(),
                job.w.rows(),
                job.w.cols(),
                job.w.bytes(),
            );
            let tiles = DisjointTiles::new(job.out, job.w.rows(), plan.row_step, plan.token_step);
            let first = end;
            end += plan.chunks();
            (first, plan, tiles, job.w, &job.epilogue)
        })
        .collect();
    let reads = Reads::new(planned.iter().map(|(.., w, _)| w.as_bytes()), false);
    run_job(context.pool, x.tokens(), end, reads, &|chunk| {
        let job = planned.partition_point(|(first, ..)| *first <= chunk) - 1;
        let (first, plan, tiles, w, epilogue) = &planned[job];
        let (row_index, token_index) = plan.place(chunk - first);
        let mut tile = tiles.take(row_index, token_index);
        let mut sums = Sums([[0.0; GROUP]; TILE]);
        for tokens in x.tiles(tile.tokens()) {
            let products = TileProducts::new(context.isa, w, x, tokens);
            for rows in groups(tile.rows()) {
                if epilogue.accumulate && rows.len() == GROUP {
                    tile.fetch(tokens.range(), rows.start);
                }
                products.group(rows.start / GROUP, &mut sums);
                finish(context.isa, epilogue, &sums.0, tokens, rows, &mut tile);
            }
        }
    });
}

/// `out = activation(G x) * (U x)` for every token, as one job of the pool; `out` is [tokens, rows].
///
/// # Panics
/// If the shapes disagree.
pub fn matmul_gated(
    context: &Context<'_>,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    x: &Activations,
    activation: Activation,
    out: &mut [f32],
) {
    check(gate, x, out, None);
    check(up, x, out, None);
    let bytes = gate.bytes() + up.bytes();
    let plan = Plan::new(
        context.pool.threads(),
        x.tokens(),
        gate.rows(),
        2 * gate.cols(),
        bytes,
    );
    let tiles = DisjointTiles::new(out, gate.rows(), plan.row_step, plan.token_step);
    let reads = Reads::new([gate.as_bytes(), up.as_bytes()].into_iter(), true);
    run_job(context.pool, x.tokens(), plan.chunks(), reads, &|chunk| {
        let (row_index, token_index) = plan.place(chunk);
        let mut tile = tiles.take(row_index, token_index);
        let gating = |gates: &[[f32; GROUP]], ups: &[[f32; GROUP]], out: &mut [[f32; GROUP]]| {
            let (gates, ups) = (gates.as_flattened(), ups.as_flattened());
            ops::gated_product(context.isa, activation, gates, ups, out.as_flattened_mut());
        };
        let epilogue = Epilogue::default();
        for tokens in x.tiles(tile.tokens()) {
            let [gate, up] = [gate, up].map(|w| TileProducts::new(context.isa, w, x, tokens));
            if tokens.width > FEW {
                let [mut gates, mut ups, mut products] = [Sums([[0.0; GROUP]; TILE]); 3];
                for rows in groups(tile.rows()) {
                    gate.group(rows.start / GROUP, &mut gates);
                    up.group(rows.start / GROUP, &mut ups);
                    let sums = &mut products.0[..tokens.tokens];
                    gating(&gates.0[..sums.len()], &ups.0[..sums.len()], sums);
                    finish(context.isa, &epilogue, sums, tokens, rows, &mut tile);
                }
                continue;
            }
            // Each matrix in one go: a straight stream.
            GATED.with_borrow_mut(|[gates, ups, products]| {
                gate.rows(tile.rows(), gates);
                up.rows(tile.rows(), ups);
                products.resize(gates.len(), [0.0; GROUP]);
                gating(gates, ups, products);
                for (rows, sums) in groups(tile.rows()).zip(products.chunks(tokens.tokens)) {
                    finish(context.isa, &epilogue, sums, tokens, rows, &mut tile);
                }
            });
        }
    });
}

/// [`matmul_gated`] of many tokens, whose result becomes the input of what follows without passing through memory as
/// floats. Does nothing and says so where that is not possible: with few tokens, or where the input is wanted in several
/// forms.
pub fn matmul_gated_quantized(
    context: &Context<'_>,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    x: &Activations,
    activation: Activation,
    out: &mut Activations,
) -> bool {
    assert_eq!(
        gate.rows(),
        up.rows(),
        "rows of a gate and what it lets through"
    );
    for w in [gate, up] {
        assert_eq!(
            w.cols(),
            x.cols(),
            "a matrix's columns and its input's length"
        );
    }
    let (rows, tokens) = (gate.rows(), x.tokens());
    if tokens <= TILE || rows == 0 {
        return false;
    }
    let bytes = gate.bytes() + up.bytes();
    let plan = Plan::new(context.pool.threads(), tokens, rows, 2 * gate.cols(), bytes);
    let Some(runs) = out.in_runs(tokens, rows, plan.row_step) else {
        return false;
    };
    let across = rows.div_ceil(runs.columns);
    let down = tokens.div_ceil(plan.token_step);
    run_in_streams(context.pool, across * down, &|chunk| {
        let (run, token_index) = (chunk % across, chunk / across);
        let first_token = token_index * plan.token_step;
        let in_chunk = first_token..first_token + plan.token_step;
        let first_row = run * runs.columns;
        let rows = first_row..rows.min(first_row + runs.columns);
        let width = rows.len();
        let [mut gates, mut ups, mut products] = [Sums([[0.0; GROUP]; TILE]); 3];
        RUN.with_borrow_mut(|buffer| {
            let tiles = runs.tiles.iter().enumerate();
            for (index, tokens) in tiles.filter(|(_, tile)| in_chunk.contains(&tile.first)) {
                let [gate, up] = [gate, up].map(|w| TileProducts::new(context.isa, w, x, *tokens));
                buffer.resize(tokens.tokens * width, 0.0);
                for group in groups(rows.clone()) {
                    gate.group(group.start / GROUP, &mut gates);
                    up.group(group.start / GROUP, &mut ups);
                    let [gates, ups] = [&gates, &ups].map(|sums| &sums.0[..tokens.tokens]);
                    let products = &mut products.0[..tokens.tokens];
                    let (gates, ups) = (gates.as_flattened(), ups.as_flattened());
                    let flat = products.as_flattened_mut();
                    ops::gated_product(context.isa, activation, gates, ups, flat);
                    let first = group.start - first_row;
                    for (out, products) in buffer.chunks_exact_mut(width).zip(products) {
                        match out[first..].first_chunk_mut() {
                            Some(out) => *out = *products,
                            None => out[first..].copy_from_slice(&products[..group.len()]),
                        }
                    }
                }
                runs.write(context.isa, index, run, buffer);
            }
        });
    });
    true
}

/// Runs the pieces of a product; with few tokens they are bound by reading.
fn run_job(
    pool: &ThreadPool,
    tokens: usize,
    pieces: usize,
    reads: Reads,
    f: &(dyn Fn(usize) + Sync),
) {
    if tokens <= TILE {
        run_reading(pool, pieces, reads, f);
    } else {
        run_in_streams(pool, pieces, f);
    }
}

thread_local! {
    /// Products of the gate, of what it lets through, and both together, [group, token].
    static GATED: RefCell<[Vec<[f32; GROUP]>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
    /// Gated products of a tile and some rows, [token, row].
    static RUN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn check(w: &PackedMatrix, x: &Activations, out: &[f32], bias: Option<&[f32]>) {
    assert_eq!(
        w.cols(),
        x.cols(),
        "a matrix's columns and its input's length"
    );
    assert_eq!(
        out.len(),
        w.rows() * x.tokens(),
        "the output of a matrix of {} rows for {} tokens",
        w.rows(),
        x.tokens()
    );
    if let Some(bias) = bias {
        assert_eq!(
            bias.len(),
            w.rows(),
            "a bias's length and its matrix's rows"
        );
    }
}

/// How a product is cut into pieces of work: rectangles of rows and tokens.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rectangles along the rows.
    across: usize,
    /// Rectangles along the tokens.
    down: usize,
    /// Rows of a rectangle, a multiple of 16.
    row_step: usize,
    /// Tokens of a rectangle, a multiple of 16.
    token_step: usize,
}

impl Plan {
    fn new(threads: usize, tokens: usize, rows: usize, cols: usize, bytes: usize) -> Plan {
        let token_step = tokens.clamp(1, CHUNK_TOKENS).next_multiple_of(TILE);
        let groups = rows.div_ceil(GROUP).max(1);
        let group_macs = GROUP * cols.max(1) * tokens.clamp(1, token_step);
        let group_bytes = (bytes / groups).max(1);
        let by_macs = CHUNK_MACS / group_macs;
        let chunk_bytes = (bytes / (2 * threads)).clamp(CHUNK_BYTES.start, CHUNK_BYTES.end);
        let by_bytes = chunk_bytes / group_bytes;
        let step = by_macs.min(if tokens <= TILE { by_bytes } else { by_macs });
        let row_step = step.clamp(1, groups) * GROUP;
        Plan {
            across: rows.div_ceil(row_step),
            down: tokens.div_ceil(token_step),
            row_step,
            token_step,
        }
    }

    fn chunks(&self) -> usize {
        self.across * self.down
    }

    /// Row and token index of a rectangle.
    fn place(&self, chunk: usize) -> (usize, usize) {
        (chunk % self.across, chunk / self.across)
    }
}

/// The groups of 16 rows of a rectangle; the last may be shorter.
fn groups(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone()
        .step_by(GROUP)
        .map(move |first| first..rows.end.min(first + GROUP))
}

/// Products of the groups of a matrix with a tile of tokens.
struct TileProducts<'a> {
    isa: Isa,
    w: &'a PackedMatrix,
    x: &'a Activations,
    tokens: TokenTile,
    /// The packed form and the kernel where it is used as it lies.
    kernel: Option<(&'a [u8], TileKernel<'a>)>,
}

impl<'a> TileProducts<'a> {
    fn new(isa: Isa, w: &'a PackedMatrix, x: &'a Activations, tokens: TokenTile) -> Self {
        let scaling = Scaling::of(w.tensor_type());
        let kernel = scaling.filter(|_| w.form() == PackedForm::Interleaved);
        let kernel = kernel.map(|form| {
            let (ty, blocks) = (w.tensor_type(), w.cols() / BLOCK);
            let kernel = TileKernel::new(isa, ty, blocks, x.panel(form, tokens), tokens.width);
            (w.as_bytes(), kernel)
        });
        TileProducts {
            isa,
            w,
            x,
            tokens,
            kernel,
        }
    }

    /// Those of a group.
    #[inline]
    fn group(&self, group: usize, sums: &mut Sums) {
        match &self.kernel {
            Some((bytes, kernel)) => kernel.run(group, bytes, sums),
            None => product(self.isa, self.w, self.x, group, self.tokens, sums),
        }
    }

    /// Those of the groups of `rows`, [group, token].
    fn rows(&self, rows: Range<usize>, out: &mut Vec<[f32; GROUP]>) {
        out.clear();
        let mut sums = Sums([[0.0; GROUP]; TILE]);
        for group in groups(rows) {
            self.group(group.start / GROUP, &mut sums);
            out.extend_from_slice(&sums.0[..self.tokens.tokens]);
        }
    }
}

/// Products of a group of 16 rows with a tile of tokens.
pub(crate) fn product(
    isa: Isa,
    w: &PackedMatrix,
    x: &Activations,
    group: usize,
    tokens: TokenTile,
    sums: &mut Sums,
) {
    if w.form() == PackedForm::Split && tokens.width <= FEW {
        let (high, low) = w.group_parts(group);
        let (group, panel) = (SplitGroup { high, low }, x.panel(Scaling::Blocks, tokens));
        return split_tile(isa, group, true, panel, tokens.width, sums);
    }
    JOINED.with_borrow_mut(|buffer| {
        let bytes = w.group(isa, group, buffer);
        group_product(isa, w, x, bytes, tokens, sums);
    });
}

thread_local! {
    /// A group of a split matrix in the interleaved form.
    static JOINED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// [`product`] of the group whose interleaved form is `bytes`.
fn group_product(
    isa: Isa,
    w: &PackedMatrix,
    x: &Activations,
    bytes: &[u8],
    tokens: TokenTile,
    sums: &mut Sums,
) {
    let ty = w.tensor_type();
    match Scaling::of(ty) {
        None => {
            let x = &x.floats(ty)[tokens.first * w.cols()..][..tokens.tokens * w.cols()];
            float_tile(isa, ty, bytes, x, w.cols(), sums);
        }
        Some(form) => {
            let group = Group {
                ty,
                blocks: w.cols() / BLOCK,
                bytes,
            };
            quantised_tile(isa, group, x.panel(form, tokens), tokens.width, sums);
        }
    }
}

/// Writes the sums of a group of rows to the output.
fn finish(
    isa: Isa,
    epilogue: &Epilogue<'_>,
    sums: &[[f32; GROUP]],
    tokens: TokenTile,
    rows: Range<usize>,
    out: &mut Tile<'_>,
) {
    if epilogue.scale == 1.0 && rows.len() == GROUP {
        let bias = epilogue
            .bias
            .and_then(|all| all[rows.clone()].first_chunk());
        return out.write(
            isa,
            tokens.range(),
            rows.start,
            sums,
            bias,
            epilogue.accumulate,
        );
    }
    let mut bias = [0.0; GROUP];
    if let Some(all) = epilogue.bias {
        bias[..rows.len()].copy_from_slice(&all[rows.clone()]);
    }
    dispatch(
        isa,
        Finish {
            epilogue,
            bias,
            sums,
            tokens,
            rows,
            out,
        },
    );
}

struct Finish<'a, 'b> {
    epilogue: &'a Epilogue<'a>,
    bias: [f32; GROUP],
    sums: &'a [[f32; GROUP]],
    tokens: TokenTile,
    rows: Range<usize>,
    out: &'a mut Tile<'b>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let scale = lanes.splat(self.epilogue.scale);
        let bias = self.bias.as_chunks::<LANES>().0;
        for token in 0..self.tokens.tokens {
            let out = self.out.part(self.tokens.first + token, self.rows.clone());
            let mut padded = [0.0; GROUP];
            let whole: &mut [f32; GROUP] = match out.try_into() {
                Ok(whole) => whole,
                Err(_) => {
                    padded[..self.rows.len()].copy_from_slice(out);
                    &mut padded
                }
            };
            let sums = self.sums[token].as_chunks::<LANES>().0;
            for (part, out) in whole.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let mut y = lanes.load(&sums[part]);
                if self.epilogue.bias.is_some() {
                    y = lanes.add(y, lanes.load(&bias[part]));
                }
                let y = if self.epilogue.accumulate {
                    lanes.mul_add(scale, y, lanes.load(out))
                } else {
                    lanes.mul(scale, y)
                };
                lanes.store(y, out);
            }
            if self.rows.len() < GROUP {
                let out = self.out.part(self.tokens.first + token, self.rows.clone());
                out.copy_from_slice(&padded[..self.rows.len()]);
            }
        }
    }
}
