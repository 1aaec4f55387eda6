//! Attention against exact arithmetic, over generated cases.

use super::*;
use crate::ops::alibi_slopes;
use crate::ops::test_support::{Random, each_isa, numbers};
use crate::{Isa, ThreadPool};

/// One sequence of a case.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    first_position: usize,
    rows: usize,
    /// Pages at the start that were dropped.
    dropped: usize,
}

#[derive(Clone, Debug)]
struct Case {
    kv_type: KvType,
    kv_heads: usize,
    group: usize,
    head_dim_k: usize,
    head_dim_v: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    alibi: bool,
    /// Size of the elements of queries and keys.
    size: f32,
    sequences: Vec<Sequence>,
    seed: u64,
}

impl Case {
    fn plain(kv_type: KvType, sequences: &[(usize, usize)]) -> Case {
        Case {
            kv_type,
            kv_heads: 2,
            group: 3,
            head_dim_k: 64,
            head_dim_v: 64,
            window: None,
            softcap: None,
            alibi: false,
            size: 1.5,
            sequences: sequences
                .iter()
                .map(|&(first_position, rows)| Sequence {
                    first_position,
                    rows,
                    dropped: 0,
                })
                .collect(),
            seed: 1,
        }
    }

    fn build(&self) -> Built {
        let shape = KvShape {
            kv_heads: self.kv_heads,
            head_dim_k: self.head_dim_k,
            head_dim_v: self.head_dim_v,
            kv_type: self.kv_type,
        };
        let mut seed = self.seed * 1000;
        let mut pages = Vec::new();
        let mut rows = 0;
        for sequence in &self.sequences {
            let len = sequence.first_position + sequence.rows;
            let count = len.div_ceil(PAGE_TOKENS);
            let mut own = vec![KvPage::new(shape); count];
            for position in 0..count * PAGE_TOKENS {
                seed += 1;
                // Slots after the end hold what a longer sequence left there.
                let stale = if position < len { 1.0 } else { 100.0 };
                let keys = numbers(self.kv_heads * self.head_dim_k, seed, self.size * stale);
                let values = numbers(self.kv_heads * self.head_dim_v, seed + 7, 2.0 * stale);
                own[position / PAGE_TOKENS].write(position % PAGE_TOKENS, &keys, &values);
            }
            own.drain(..sequence.dropped);
            pages.push(own);
            rows += sequence.rows;
        }
        let heads = self.kv_heads * self.group;
        Built {
            q: numbers(rows * heads * self.head_dim_k, seed + 1, self.size),
            slopes: self.alibi.then(|| alibi_slopes(heads, 8.0)),
            pages,
            rows,
        }
    }
}

struct Built {
    q: Vec<f32>,
    slopes: Option<Vec<f32>>,
    pages: Vec<Vec<KvPage>>,
    rows: usize,
}

fn params<'a>(case: &Case, built: &'a Built) -> AttentionParams<'a> {
    AttentionParams {
        heads: case.kv_heads * case.group,
        kv_heads: case.kv_heads,
        head_dim_k: case.head_dim_k,
        head_dim_v: case.head_dim_v,
        scale: 1.0 / (case.head_dim_k as f32).sqrt(),
        softcap: case.softcap,
        window: case.window,
        alibi_slopes: built.slopes.as_deref(),
    }
}

fn run(case: &Case, built: &Built, isa: Isa, threads: usize) -> Vec<f32> {
    let pool = ThreadPool::new(threads);
    let views: Vec<Vec<&KvPage>> = built.pages.iter().map(|own| own.iter().collect()).collect();
    let mut jobs = Vec::new();
    let mut row = 0;
    for (sequence, pages) in case.sequences.iter().zip(&views) {
        jobs.push(AttentionJob {
            rows: row..row + sequence.rows,
            first_position: sequence.first_position,
            pages,
            pages_start: sequence.dropped * PAGE_TOKENS,
            len: sequence.first_position + sequence.rows,
        });
        row += sequence.rows;
    }
    let params = params(case, built);
    let mut out = vec![f32::NAN; built.rows * params.heads * params.head_dim_v];
    let context = Context { isa, pool: &pool };
    attention(&context, &params, &jobs, &built.q, &mut out);
    out
}

/// The same in f64, on what the pages hold.
fn exact(case: &Case, built: &Built) -> Vec<f64> {
    let params = params(case, built);
    let mut out = Vec::new();
    let mut queries = built.q.chunks_exact(case.head_dim_k);
    for (sequence, own) in case.sequences.iter().zip(&built.pages) {
        let first_kept = sequence.dropped * PAGE_TOKENS;
        let len = sequence.first_position + sequence.rows;
        let at = |position: usize| {
            let position = position - first_kept;
            (&own[position / PAGE_TOKENS], position % PAGE_TOKENS)
        };
        let read = |key: bool| -> Vec<Vec<f32>> {
            (first_kept..len)
                .map(|position| {
                    let (page, slot) = at(position);
                    if key {
                        page.read_k(slot)
                    } else {
                        page.read_v(slot)
                    }
                })
                .collect()
        };
        let (keys, values) = (read(true), read(false));
        for position in sequence.first_position..len {
            let first = case
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window))
                .max(first_kept);
            for head in 0..params.heads {
                let kv_head = head / case.group;
                let query = queries.next().unwrap();
                let scores: Vec<f64> = (first..=position)
                    .map(|key| {
                        let stored = &keys[key - first_kept][kv_head * case.head_dim_k..];
                        let dot: f64 = query
                            .iter()
                            .zip(stored)
                            .map(|(&q, &k)| f64::from(q) * f64::from(k))
                            .sum();
                        let mut score = dot * f64::from(params.scale);
                        if let Some(cap) = case.softcap {
                            score = f64::from(cap) * (score / f64::from(cap)).tanh();
                        }
                        if let Some(slopes) = &built.slopes {
                            score -= f64::from(slopes[head]) * (position - key) as f64;
                        }
                        score
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..case.head_dim_v).map(|d| {
                    let sum: f64 = weights
                        .iter()
                        .zip(first..)
                        .map(|(weight, key)| {
                            let stored = &values[key - first_kept][kv_head * case.head_dim_v..];
                            weight * f64::from(stored[d])
                        })
                        .sum();
                    sum / total
                }));
            }
        }
    }
    out
}

/// Normalised mean square error.
fn error(got: &[f32], exact: &[f64]) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (&got, &exact) in got.iter().zip(exact) {
        difference += (f64::from(got) - exact).powi(2);
        size += exact.powi(2);
    }
    difference / size
}

fn check(case: &Case) {
    let built = case.build();
    let exact = exact(case, &built);
    let bound = match case.kv_type {
        KvType::F32 => ATTENTION_ERROR_F32,
        KvType::F16 | KvType::Q8_0 => ATTENTION_ERROR,
    };
    let mut expected: Option<Vec<u32>> = None;
    for isa in each_isa() {
        for threads in 1..=3 {
            if isa == Isa::Scalar && threads == 3 {
                continue;
            }
            let got = run(case, &built, isa, threads);
            let error = error(&got, &exact);
            assert!(error <= bound, "error {error:e} on {isa:?}: {case:?}");
            let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
            let expected = expected.get_or_insert_with(|| bits.clone());
            let different = (0..bits.len()).find(|&i| bits[i] != expected[i]);
            assert!(
                different.is_none(),
                "{different:?} differs on {isa:?} with {threads} threads: {case:?}"
            );
        }
    }
}

const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

#[test]
fn one_row_at_the_edges_of_pages() {
    for kv_type in TYPES {
        for position in [0, 1, 15, 16, 62, 63, 64, 65, 127, 128, 511, 512, 700] {
            check(&Case::plain(kv_type, &[(position, 1)]));
        }
    }
}

#[test]
fn many_rows_at_the_edges_of_pages() {
    for kv_type in TYPES {
        for (first, rows) in [
            (0, 5),
            (0, 16),
            (0, 64),
            (3, 65),
            (60, 130),
            (64, 64),
            (600, 20),
        ] {
            check(&Case::plain(kv_type, &[(first, rows)]));
        }
    }
}

#[test]
fn head_sizes() {
    for kv_type in TYPES {
        for (head_dim_k, head_dim_v) in [
            (2, 2),
            (16, 16),
            (20, 20),
            (48, 48),
            (80, 80),
            (96, 96),
            (128, 128),
            (256, 256),
            (192, 128),
            (64, 34),
            (33, 17),
        ] {
            for sequence in [(70, 1), (50, 30)] {
                let mut case = Case::plain(kv_type, &[sequence]);
                (case.head_dim_k, case.head_dim_v) = (head_dim_k, head_dim_v);
                case.kv_heads = 1;
                check(&case);
            }
        }
    }
}

#[test]
fn head_ratios() {
    for kv_type in TYPES {
        for (kv_heads, group) in [
            (1, 1),
            (4, 1),
            (2, 2),
            (1, 4),
            (1, 5),
            (1, 7),
            (3, 8),
            (1, 71),
        ] {
            for sequence in [(90, 1), (40, 2), (10, 33)] {
                let mut case = Case::plain(kv_type, &[sequence]);
                (case.kv_heads, case.group) = (kv_heads, group);
                (case.head_dim_k, case.head_dim_v) = (16, 32);
                check(&case);
            }
        }
    }
}

#[test]
fn windows_and_dropped_pages() {
    for kv_type in TYPES {
        for window in [1, 2, 17, 64, 100, 128] {
            for (first, rows) in [(200, 1), (300, 3), (150, 90)] {
                let mut case = Case::plain(kv_type, &[(first, rows)]);
                case.window = Some(window);
                case.head_dim_k = 32;
                check(&case);
                case.sequences[0].dropped = (first + 1 - window.min(first)) / PAGE_TOKENS;
                check(&case);
                case.window = None;
                check(&case);
            }
        }
    }
}

#[test]
fn softcap_and_bias() {
    for kv_type in TYPES {
        for (softcap, alibi) in [(Some(5.0), false), (None, true), (Some(30.0), true)] {
            for sequence in [(0, 1), (130, 2), (70, 70)] {
                let mut case = Case::plain(kv_type, &[sequence]);
                (case.softcap, case.alibi) = (softcap, alibi);
                case.window = (sequence.1 == 2).then_some(90);
                check(&case);
            }
        }
    }
}

#[test]
fn several_sequences() {
    for kv_type in TYPES {
        check(&Case::plain(
            kv_type,
            &[(100, 1), (0, 40), (7, 3), (600, 1), (64, 70), (0, 1)],
        ));
    }
}

#[test]
fn scores_of_every_size() {
    for kv_type in TYPES {
        for size in [0.0, 1e-18, 1e-3, 4.0, 9.0] {
            for sequence in [(150, 1), (100, 40)] {
                let mut case = Case::plain(kv_type, &[sequence]);
                case.size = size;
                check(&case);
            }
        }
    }
}

#[test]
fn random_cases() {
    let mut random = Random::new(5);
    for seed in 0..40 {
        let mut sequences = Vec::new();
        for _ in 0..1 + random.below(3) {
            let first_position = random.below(400);
            let most_rows = [2, 8, 80][random.below(3)];
            sequences.push(Sequence {
                first_position,
                rows: 1 + random.below(most_rows),
                dropped: random.below(2) * (first_position / PAGE_TOKENS) / 2,
            });
        }
        check(&Case {
            kv_type: TYPES[random.below(3)],
            kv_heads: 1 + random.below(3),
            group: 1 + random.below(5),
            head_dim_k: 2 * (1 + random.below(40)),
            head_dim_v: 2 * (1 + random.below(40)),
            window: (random.below(3) == 0).then(|| 1 + random.below(200)),
            softcap: (random.below(4) == 0).then_some(20.0),
            alibi: random.below(4) == 0,
            size: 2.0,
            sequences,
            seed,
        });
    }
}

#[test]
fn rows_of_no_job_are_left_alone() {
    let case = Case::plain(KvType::F16, &[(10, 2)]);
    let mut built = case.build();
    let pool = ThreadPool::new(2);
    let own = built.pages.remove(0);
    let pages: Vec<&KvPage> = own.iter().collect();
    let params = params(&case, &built);
    let width = params.heads * 64;
    let q = [&built.q[..], &built.q[..], &built.q[..]].concat();
    let mut out = vec![7.0; 6 * width];
    let job = AttentionJob {
        rows: 3..5,
        first_position: 10,
        pages: &pages,
        pages_start: 0,
        len: 12,
    };
    let empty = AttentionJob {
        rows: 1..1,
        first_position: 0,
        pages: &[],
        pages_start: 0,
        len: 0,
    };
    let context = Context {
        isa: Isa::detect(),
        pool: &pool,
    };
    attention(&context, &params, &[empty, job], &q, &mut out);
    for (row, out) in out.chunks_exact(width).enumerate() {
        assert_eq!(out.iter().all(|&x| x == 7.0), !(3..5).contains(&row));
    }
    attention(&context, &params, &[], &[], &mut []);
}

#[test]
fn powers_of_two_are_within_their_bounds() {
    use crate::arch::wide::{Wide, WideKernel, dispatch_wide};
    struct Powers<'a>(&'a [f32; 16], &'a mut [[f32; 16]; 2]);
    impl WideKernel for Powers<'_> {
        type Output = ();
        #[inline(always)]
        fn run<W: Wide>(self, w: W) {
            let x = w.load(self.0);
            w.store(numeric::exp2(w, x), &mut self.1[0]);
            w.store(numeric::exp2_coarse(w, x), &mut self.1[1]);
        }
    }
    for isa in each_isa() {
        for step in 0..40_000 {
            let x: [f32; 16] = std::array::from_fn(|i| -((step * 16 + i) as f32) * 1.9e-4);
            let mut y = [[0.0; 16]; 2];
            dispatch_wide(isa, Powers(&x, &mut y));
            for (i, x) in x.iter().enumerate() {
                let exact = f64::from(*x).exp2();
                let error = |y: f32| (f64::from(y) / exact - 1.0).abs();
                assert!(error(y[0][i]) <= 4e-7, "{x} {}", y[0][i]);
                assert!(error(y[1][i]) <= 8e-5, "{x} {}", y[1][i]);
            }
        }
    }
}
