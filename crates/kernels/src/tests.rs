//! Products and packing: every type, shape and instruction set against the plain definition.

use crate::activations::{Scaling, WORDS};
use crate::ops::test_support::{Random, each_isa, numbers};
use crate::ops::{self, Activation};
use crate::test_blocks::{random_bytes, random_rows};
use crate::*;

/// Largest error of a product relative to the sum of the sizes of its terms: the rounding of a few hundred sums.
const PRODUCT_ERROR: f64 = 2e-6;

/// Columns that the type allows, among them ones that end in the middle of a span, and odd ones for floats.
fn columns(ty: TensorType) -> Vec<usize> {
    match ty.block_len() {
        1 => vec![1, 33, 64, 257],
        32 => vec![32, 96, 256, 288, 576],
        _ => vec![256, 768],
    }
}

fn is_float(ty: TensorType) -> bool {
    ty.block_len() == 1
}

/// The inputs as quantised weights see them, [tokens, cols].
fn seen(x: &Activations, ty: TensorType) -> Vec<f64> {
    let Some(form) = Scaling::of(ty) else {
        return x.floats(ty).iter().map(|&x| f64::from(x)).collect();
    };
    let mut out = Vec::new();
    for tile in x.tiles(0..x.tokens()) {
        let blocks: Vec<&[i32]> = x
            .panel(form, tile)
            .chunks_exact(WORDS * tile.width)
            .collect();
        for token in 0..tile.tokens {
            for block in &blocks {
                let scale = f64::from(f32::from_bits(block[8 * tile.width + token] as u32));
                for word in &block[8 * token..8 * token + 8] {
                    out.extend(word.to_le_bytes().map(|byte| f64::from(byte as i8) * scale));
                }
            }
        }
    }
    out
}

/// (product, sum of the sizes of its terms), [tokens, rows].
fn exact(w: &[f32], x: &[f64], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in w.chunks_exact(cols) {
            let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * x);
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            }));
        }
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    // All NaN are alike here.
    x.iter()
        .map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() })
        .collect()
}

fn product(isa: Isa, pool: &ThreadPool, w: &PackedMatrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let context = Context { isa, pool };
    let mut activations = Activations::default();
    activations.quantize(&context, x, tokens, w.cols());
    let mut out = vec![f32::NAN; tokens * w.rows()];
    matmul(&context, w, &activations, &mut out, &Epilogue::default());
    out
}

#[test]
fn packed_rows_are_the_file_s_rows() {
    for ty in TensorType::ALL {
        for (cols, rows) in columns(ty).into_iter().zip([1, 15, 16, 17, 40]) {
            let raw = random_rows(ty, rows, cols, 5);
            let mut expected = vec![0.0; rows * cols];
            dequantize(ty, &raw, &mut expected).unwrap();
            let matrix = PackedMatrix::pack(ty, rows, cols, &raw).unwrap();
            let mut row = vec![0.0; cols];
            for (index, expected) in expected.chunks_exact(cols).enumerate() {
                matrix.dequantize_row(index, &mut row).unwrap();
                assert_eq!(row, expected, "{ty} {rows} x {cols}, row {index}");
            }
        }
    }
}

#[test]
fn rows_may_come_in_any_portions() {
    let pool = ThreadPool::new(3);
    for ty in TensorType::ALL {
        let (rows, cols) = (53, columns(ty)[1]);
        let raw = random_bytes(ty, rows, cols, 9);
        let whole = PackedMatrix::pack(ty, rows, cols, &raw).unwrap();
        let row_bytes = ty.row_bytes(cols).unwrap();
        let mut random = Random::new(3);
        let mut builder = PackedMatrix::builder(ty, rows, cols).unwrap();
        let mut parallel = PackedMatrix::builder(ty, rows, cols).unwrap();
        let mut first = 0;
        while first < rows {
            let count = random.below(20).min(rows - first);
            let part = &raw[first * row_bytes..(first + count) * row_bytes];
            builder.push_rows(part).unwrap();
            parallel.push_rows_parallel(&pool, part).unwrap();
            first += count;
        }
        assert_eq!(builder.finish().unwrap().as_bytes(), whole.as_bytes());
        assert_eq!(parallel.finish().unwrap().as_bytes(), whole.as_bytes());
        let bytes: SharedBytes = std::sync::Arc::new(whole.as_bytes().to_vec());
        let again = PackedMatrix::from_bytes(ty, rows, cols, bytes, 0..whole.bytes()).unwrap();
        assert_eq!(again.as_bytes(), whole.as_bytes());
    }
}

#[test]
fn wrong_bytes_are_refused() {
    let raw = random_bytes(TensorType::Q4_K, 3, 256, 1);
    let pack =
        |rows, cols, raw: &[u8]| PackedMatrix::pack(TensorType::Q4_K, rows, cols, raw).map(|_| ());
    assert!(pack(3, 256, &raw).is_ok());
    assert!(matches!(
        pack(3, 255, &raw),
        Err(KernelError::PartialBlock { .. })
    ));
    assert!(matches!(
        pack(3, 256, &raw[1..]),
        Err(KernelError::Length { .. })
    ));
    assert!(matches!(
        pack(2, 256, &raw),
        Err(KernelError::Length { .. })
    ));
    assert!(matches!(
        pack(4, 256, &raw),
        Err(KernelError::Length { .. })
    ));
    for (rows, cols) in [
        (usize::MAX, 256),
        (1, usize::MAX & !255),
        (usize::MAX / 200, 256),
    ] {
        let error = pack(rows, cols, &raw).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::TooLarge { .. } | KernelError::OutOfMemory(_)
            ),
            "{error}"
        );
    }
    let matrix = PackedMatrix::pack(TensorType::Q4_K, 3, 256, &raw).unwrap();
    assert!(matrix.dequantize_row(3, &mut [0.0; 256]).is_err());
    assert!(matrix.dequantize_row(2, &mut [0.0; 255]).is_err());
    let bytes: SharedBytes = std::sync::Arc::new(vec![0u8; 100]);
    assert!(PackedMatrix::from_bytes(TensorType::Q4_K, 3, 256, bytes, 0..100).is_err());
    assert!(dequantize(TensorType::Q4_0, &[0; 17], &mut [0.0; 32]).is_err());
    assert!(dequantize(TensorType::Q4_0, &[0; 18], &mut [0.0; 31]).is_err());
}

#[test]
fn empty_matrices_and_inputs_are_fine() {
    let pool = ThreadPool::new(2);
    for ty in TensorType::ALL {
        let cols = columns(ty)[0];
        for isa in each_isa() {
            let matrix = PackedMatrix::pack(ty, 0, cols, &[]).unwrap();
            assert!(product(isa, &pool, &matrix, &vec![0.0; cols], 1).is_empty());
            let matrix = PackedMatrix::pack(ty, 3, cols, &random_rows(ty, 3, cols, 1)).unwrap();
            assert!(product(isa, &pool, &matrix, &[], 0).is_empty());
            let matrix = PackedMatrix::pack(ty, 3, 0, &[]).unwrap();
            assert_eq!(product(isa, &pool, &matrix, &[], 2), [0.0; 6]);
        }
    }
}

/// What types with minima lose because the scaled sums of the inputs are rounded to half precision, as a share of the
/// terms' sizes: a unit in the last place is 2^-11, and a minimum is up to twice as large as the weights.
fn scaled_sum_error(ty: TensorType) -> f64 {
    use TensorType::*;
    match ty {
        Q4_1 | Q5_1 => 1.0 / 1024.0,
        _ => 0.0,
    }
}

#[test]
fn products_are_the_sums_of_their_terms() {
    let pool = ThreadPool::new(2);
    for ty in TensorType::ALL {
        for (cols, tokens) in columns(ty).into_iter().zip([1, 7, 16, 2, 33]) {
            let rows = 21;
            let raw = random_rows(ty, rows, cols, cols as u64);
            let mut plain = vec![0.0; rows * cols];
            dequantize(ty, &raw, &mut plain).unwrap();
            let w = PackedMatrix::pack(ty, rows, cols, &raw).unwrap();
            let x = numbers(tokens * cols, 8, 2.0);
            let mut activations = Activations::default();
            let context = Context {
                isa: Isa::Scalar,
                pool: &pool,
            };
            activations.quantize(&context, &x, tokens, cols);
            let expected = exact(&plain, &seen(&activations, ty), cols);
            let out = product(Isa::Scalar, &pool, &w, &x, tokens);
            for (index, (&got, (sum, size))) in out.iter().zip(expected).enumerate() {
                let error = (f64::from(got) - sum).abs();
                let bound = PRODUCT_ERROR + scaled_sum_error(ty);
                assert!(
                    error <= bound * size,
                    "{ty} {rows} x {cols}, {tokens} tokens, at {index}: {got}, {sum}"
                );
            }
        }
    }
}

#[test]
fn bits_are_the_same_on_each_isa_for_any_threads_and_tokens() {
    let pools = [1, 2, 3].map(ThreadPool::new);
    for ty in TensorType::ALL {
        for (cols, rows) in columns(ty).into_iter().zip([1, 35, 16, 48, 31]) {
            for extreme in [false, true] {
                let raw = if extreme {
                    random_bytes(ty, rows, cols, 77)
                } else {
                    random_rows(ty, rows, cols, 77)
                };
                let w = PackedMatrix::pack(ty, rows, cols, &raw).unwrap();
                let x = numbers(33 * cols, 4, if extreme { 1e3 } else { 1.0 });
                let expected = bits(&product(Isa::Scalar, &pools[0], &w, &x, 33));
                for isa in each_isa() {
                    for tokens in 1..=33 {
                        let x = &x[..tokens * cols];
                        let got = product(isa, &pools[tokens % 3], &w, x, tokens);
                        assert!(
                            bits(&got) == expected[..tokens * rows],
                            "{ty} {rows} x {cols}, {tokens} tokens, {isa:?}, extreme: {extreme}"
                        );
                        if isa == Isa::Scalar && tokens >= 3 {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn largest_codes_do_not_overflow() {
    // Every code at its largest or smallest against inputs at 127 and -127.
    let pool = ThreadPool::new(1);
    for ty in TensorType::ALL.into_iter().filter(|&ty| !is_float(ty)) {
        for fill in [0x00, 0xff, 0x77, 0x88, 0x80, 0x7f] {
            let cols = 256;
            let mut raw = random_rows(ty, 16, cols, 1);
            let scales = random_rows(ty, 16, cols, 1);
            raw.fill(fill);
            keep_scales(ty, &scales, &mut raw);
            let w = PackedMatrix::pack(ty, 16, cols, &raw).unwrap();
            for sign in [1.0, -1.0] {
                let x = vec![sign; cols];
                let expected = bits(&product(Isa::Scalar, &pool, &w, &x, 1));
                for isa in each_isa() {
                    assert_eq!(
                        bits(&product(isa, &pool, &w, &x, 1)),
                        expected,
                        "{ty} {fill:x} {isa:?}"
                    );
                }
            }
        }
    }
}

/// Copies the f16 scales of every block.
fn keep_scales(ty: TensorType, from: &[u8], to: &mut [u8]) {
    use TensorType::*;
    let places: &[usize] = match ty {
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 1, 2, 3],
        Q2_K => &[80, 81, 82, 83],
        Q3_K => &[108, 109],
        Q6_K => &[208, 209],
        TQ1_0 => &[52, 53],
        TQ2_0 => &[64, 65],
        MXFP4 => &[0],
        _ => &[0, 1],
    };
    let blocks = from.chunks_exact(ty.block_bytes());
    for (from, to) in blocks.zip(to.chunks_exact_mut(ty.block_bytes())) {
        places.iter().for_each(|&place| to[place] = from[place]);
    }
}

#[test]
fn epilogues_do_what_they_say() {
    let pool = ThreadPool::new(2);
    for (rows, tokens) in [(5, 1), (16, 3), (37, 18)] {
        let cols = 64;
        let raw = random_rows(TensorType::Q4_0, rows, cols, 2);
        let w = PackedMatrix::pack(TensorType::Q4_0, rows, cols, &raw).unwrap();
        let x = numbers(tokens * cols, 6, 1.0);
        let plain = product(Isa::Scalar, &pool, &w, &x, tokens);
        let bias = numbers(rows, 7, 1.0);
        let before = numbers(tokens * rows, 8, 1.0);
        for isa in each_isa() {
            let context = Context { isa, pool: &pool };
            let mut activations = Activations::default();
            activations.quantize(&context, &x, tokens, cols);
            for (bias, scale, accumulate) in [
                (None, 1.0, true),
                (Some(&bias[..]), 1.0, false),
                (Some(&bias[..]), 0.3, true),
                (None, -2.0, false),
            ] {
                let mut out = before.clone();
                let epilogue = Epilogue {
                    bias,
                    scale,
                    accumulate,
                };
                matmul(&context, &w, &activations, &mut out, &epilogue);
                for (index, out) in out.iter().enumerate() {
                    let y = plain[index] + bias.map_or(0.0, |bias| bias[index % rows]);
                    let expected = if accumulate {
                        scale.mul_add(y, before[index])
                    } else {
                        scale * y
                    };
                    assert_eq!(out.to_bits(), (expected + 0.0).to_bits(), "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn groups_and_gated_products_are_single_products() {
    let pool = ThreadPool::new(2);
    let types = [
        TensorType::Q4_K,
        TensorType::Q6_K,
        TensorType::F16,
        TensorType::Q8_0,
    ];
    for (rows, tokens) in [(5, 1), (80, 3), (130, 70)] {
        let cols = 256;
        let matrices: Vec<PackedMatrix> = types
            .iter()
            .map(|&ty| PackedMatrix::pack(ty, rows, cols, &random_rows(ty, rows, cols, 2)).unwrap())
            .collect();
        let x = numbers(tokens * cols, 6, 1.0);
        for isa in each_isa() {
            let context = Context { isa, pool: &pool };
            let mut activations = Activations::default();
            activations.quantize(&context, &x, tokens, cols);
            let single: Vec<Vec<f32>> = matrices
                .iter()
                .map(|w| product(isa, &pool, w, &x, tokens))
                .collect();
            let mut outs = vec![vec![0.0; rows * tokens]; types.len()];
            let mut jobs: Vec<MatmulJob> = matrices
                .iter()
                .zip(&mut outs)
                .map(|(w, out)| MatmulJob {
                    w,
                    out,
                    epilogue: Epilogue::default(),
                })
                .collect();
            matmul_group(&context, &mut jobs, &activations);
            assert_eq!(outs, single);
            for (gate, up) in [(0, 1), (2, 3), (3, 0)] {
                let mut expected = vec![0.0; rows * tokens];
                ops::gated_product(
                    isa,
                    Activation::Silu,
                    &single[gate],
                    &single[up],
                    &mut expected,
                );
                let mut out = vec![0.0; rows * tokens];
                let (gate, up) = (&matrices[gate], &matrices[up]);
                matmul_gated(&context, gate, up, &activations, Activation::Silu, &mut out);
                assert_eq!(out, expected);
            }
        }
    }
}

#[test]
fn gated_products_become_inputs_as_if_they_were_written_first() {
    let pool = ThreadPool::new(3);
    // Of what reads them: blocks with scales of their own, spans, several forms at once, and numbers of rows that end
    // within a run.
    let (q8, q4k, f32) = (TensorType::Q8_0, TensorType::Q4_K, TensorType::F32);
    let cases: [(usize, &[TensorType], bool); 6] = [
        (96, &[q8], true),
        (768, &[q4k], true),
        (768, &[q8], true),
        (768, &[q8, q4k], false),
        (64, &[f32], false),
        (64, &[q8, f32], false),
    ];
    for (rows, readers, possible) in cases {
        for tokens in [5, 17, 16, 45, 131] {
            for isa in each_isa() {
                let context = Context { isa, pool: &pool };
                let cols = 64;
                let matrix = |seed| {
                    let raw = random_rows(TensorType::Q4_0, rows, cols, seed);
                    PackedMatrix::pack(TensorType::Q4_0, rows, cols, &raw).unwrap()
                };
                let (gate, up) = (matrix(1), matrix(2));
                let mut x = Activations::default();
                x.quantize(&context, &numbers(tokens * cols, 3, 2.0), tokens, cols);
                let mut out = vec![0.0; rows * tokens];
                matmul_gated(&context, &gate, &up, &x, Activation::Silu, &mut out);
                let mut expected = Activations::default();
                expected.read_only_by(readers.iter().map(|&ty| (ty, rows)));
                let mut got = expected.clone();
                // What was there before does not matter.
                got.quantize(&context, &vec![1.0; 200 * rows], 200, rows);
                expected.quantize(&context, &out, tokens, rows);
                let silu = Activation::Silu;
                let done = matmul_gated_quantized(&context, &gate, &up, &x, silu, &mut got);
                assert_eq!(done, possible && tokens > 16, "{rows} {readers:?} {tokens}");
                if !done {
                    continue;
                }
                for &ty in readers {
                    let raw = random_rows(ty, 33, rows, 4);
                    let next = PackedMatrix::pack(ty, 33, rows, &raw).unwrap();
                    let products = |x: &Activations| {
                        let mut out = vec![0.0; 33 * tokens];
                        matmul(&context, &next, x, &mut out, &Epilogue::default());
                        bits(&out)
                    };
                    assert_eq!(
                        products(&got),
                        products(&expected),
                        "{isa:?} {rows} {tokens}"
                    );
                }
            }
        }
    }
}

#[test]
fn quantised_numbers_come_back() {
    let x = numbers(640, 3, 5.0);
    for (ty, levels) in [(TensorType::Q8_0, 127.0), (TensorType::Q4_0, 8.0)] {
        let mut raw = Vec::new();
        quantize(ty, &x, &mut raw).unwrap();
        let mut back = vec![0.0; x.len()];
        dequantize(ty, &raw, &mut back).unwrap();
        for (x, back) in x.chunks_exact(32).zip(back.chunks_exact(32)) {
            let most = x
                .iter()
                .fold(0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
            for (x, back) in x.iter().zip(back) {
                // The last step on the far side of Q4_0's range is cut off; f16 scales round.
                let cut = ty == TensorType::Q4_0 && x / most < -0.9;
                let bound = if cut { 1.01 } else { 0.51 };
                assert!((x - back).abs() <= (bound / levels + 1e-3) * most.abs());
            }
        }
    }
    assert!(quantize(TensorType::Q4_K, &x, &mut Vec::new()).is_err());
    assert!(quantize(TensorType::Q8_0, &x[1..], &mut Vec::new()).is_err());
}
