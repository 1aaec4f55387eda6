use super::*;
use crate::ops::test_support::{Random, each_isa, numbers};
use crate::test_blocks::{random_bytes, random_rows};
use crate::{Epilogue, Isa, PackedForm, SharedBytes, TensorType, ThreadPool, matmul};

const TY: TensorType = TensorType::Q8_0;

fn pack(form: PackedForm, rows: usize, cols: usize, raw: &[u8]) -> PackedMatrix {
    let mut builder = PackedMatrix::builder_of(form, TY, rows, cols).unwrap();
    builder.push_rows(raw).unwrap();
    builder.finish().unwrap()
}

fn split(rows: usize, cols: usize, raw: &[u8]) -> PackedMatrix {
    pack(PackedForm::Split, rows, cols, raw)
}

fn quantized(context: &Context<'_>, x: &[f32], cols: usize) -> Activations {
    let mut activations = Activations::default();
    activations.quantize(context, x, x.len() / cols, cols);
    activations
}

fn products(context: &Context<'_>, w: &PackedMatrix, x: &Activations) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens() * w.rows()];
    matmul(context, w, x, &mut out, &Epilogue::default());
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    // All NaN are alike here.
    x.iter()
        .map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() })
        .collect()
}

/// The highest `count` by the definition, with all that equal the last.
fn best(products: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(products.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let last = all[count.min(all.len()) - 1].1;
    all.retain(|&(_, product)| product >= last);
    all
}

/// Searches for all tokens and compares with the full product; gives the share of tokens that the bound decided.
fn assert_found(isa: Isa, w: &PackedMatrix, x: &[f32], count: usize, also: &[u32]) -> f64 {
    let pool = ThreadPool::new(3);
    let context = Context { isa, pool: &pool };
    let x = quantized(&context, x, w.cols());
    let full = products(&context, w, &x);
    let wanted = vec![Best { count, also }; x.tokens()];
    let mut decided = 0;
    let mut screen = Screen::default();
    screen.search(&context, w, &x, &wanted, &mut |token, found| {
        let Some(found) = found else { return };
        decided += 1;
        let full = &full[token * w.rows()..][..w.rows()];
        let expected = best(full, count);
        assert!(found.len() >= expected.len());
        assert_eq!(found[..expected.len()], expected, "{isa:?} {count}");
        for &(row, product) in found {
            assert_eq!(product.to_bits(), full[row as usize].to_bits());
        }
        for &row in also.iter().filter(|&&row| (row as usize) < w.rows()) {
            assert!(found.iter().any(|&(found, _)| found == row));
        }
    });
    decided as f64 / x.tokens() as f64
}

/// Rows as blocks of Q8_0: `scale` and `code` of each (row, column).
fn rows_of(
    rows: usize,
    cols: usize,
    scale: impl Fn(usize, usize) -> f32,
    code: impl Fn(usize, usize) -> i8,
) -> Vec<u8> {
    let mut raw = Vec::new();
    for row in 0..rows {
        for block in 0..cols / BLOCK {
            raw.extend(half::f16::from_f32(scale(row, block)).to_le_bytes());
            raw.extend((0..BLOCK).map(|i| code(row, BLOCK * block + i) as u8));
        }
    }
    raw
}

#[test]
fn a_split_matrix_is_the_same_matrix() {
    let pool = ThreadPool::new(2);
    for (rows, cols) in [(1, 32), (15, 256), (16, 288), (40, 640), (53, 96)] {
        for raw in [
            random_rows(TY, rows, cols, 3),
            random_bytes(TY, rows, cols, 4),
        ] {
            let plain = pack(PackedForm::Interleaved, rows, cols, &raw);
            let split = split(rows, cols, &raw);
            let (mut expected, mut row) = (vec![0.0; cols], vec![0.0; cols]);
            for index in 0..rows {
                plain.dequantize_row(index, &mut expected).unwrap();
                split.dequantize_row(index, &mut row).unwrap();
                assert_eq!(bits(&row), bits(&expected), "{rows} x {cols}, row {index}");
            }
            let x = numbers(9 * cols, 5, 2.0);
            for isa in each_isa() {
                let context = Context { isa, pool: &pool };
                let x = quantized(&context, &x, cols);
                let expected = products(&context, &plain, &x);
                assert_eq!(
                    bits(&products(&context, &split, &x)),
                    bits(&expected),
                    "{isa:?}"
                );
            }
        }
    }
}

#[test]
fn a_split_matrix_is_packed_in_portions_and_read_back() {
    let (rows, cols) = (53, 288);
    let raw = random_rows(TY, rows, cols, 6);
    let whole = split(rows, cols, &raw);
    let mut builder = PackedMatrix::builder_of(PackedForm::Split, TY, rows, cols).unwrap();
    for part in raw.chunks(7 * TY.row_bytes(cols).unwrap()) {
        builder.push_rows(part).unwrap();
    }
    assert_eq!(builder.finish().unwrap().as_bytes(), whole.as_bytes());
    assert!(whole.bytes() as f64 <= 1.06 * raw.len() as f64 * 64.0 / rows as f64);

    let storage: SharedBytes = std::sync::Arc::new(whole.clone().as_bytes().to_vec());
    let read = |range: std::ops::Range<usize>| {
        PackedMatrix::from_bytes_of(PackedForm::Split, TY, rows, cols, storage.clone(), range)
    };
    assert!(read(0..whole.bytes() - 1).is_err());
    if let Ok(again) = read(0..whole.bytes()) {
        assert!(again.can_screen());
    }
    assert!(PackedMatrix::builder_of(PackedForm::Split, TensorType::Q4_K, 1, 256).is_err());
    assert_eq!(PackedForm::for_scores(TY, 1 << 15), PackedForm::Split);
    assert_eq!(
        PackedForm::for_scores(TensorType::F16, 1 << 15),
        PackedForm::Interleaved
    );
}

#[test]
fn screens_are_the_same_on_each_isa() {
    let pool = ThreadPool::new(2);
    for (tokens, cols) in [(1, 32), (2, 288), (7, 96), (16, 256), (1, 640)] {
        let rows = 41;
        let w = split(rows, cols, &random_rows(TY, rows, cols, 8));
        let x = numbers(tokens * cols, 9, 2.0);
        let depth = cols / 96;
        let run = |isa| {
            let context = Context { isa, pool: &pool };
            let mut screen = Screen::default();
            let x = quantized(&context, &x, cols);
            screen.depth = depth;
            screen.choose_blocks(&x);
            screen.estimate(&context, &w, &x);
            bits(&screen.estimates)
        };
        let expected = run(Isa::Scalar);
        for isa in each_isa() {
            assert_eq!(run(isa), expected, "{isa:?} {tokens} {cols}");
        }
    }
}

/// Whether each product is within its bound of the screen when norms are `factor` times what they are.
fn bound_holds(w: &PackedMatrix, x: &[f32], factor: f32, depth: usize) -> bool {
    let pool = ThreadPool::new(1);
    let context = Context {
        isa: Isa::detect(),
        pool: &pool,
    };
    let x = quantized(&context, x, w.cols());
    let full = products(&context, w, &x);
    let mut screen = Screen {
        depth,
        is_hard: true,
        ..Screen::default()
    };
    screen.choose_blocks(&x);
    screen.estimate(&context, w, &x);
    let mut norms = w.norms().flatten();
    let tile = x.tiles(0..1).next().unwrap();
    let input = InputNorm::of(x.panel(Scaling::Blocks, tile), tile.width, 0, &screen.whole);
    full.iter().zip(&screen.estimates).all(|(full, estimate)| {
        let norm = f64::from(*norms.next().unwrap() * factor);
        (f64::from(*full) - f64::from(*estimate)).abs() <= norm * f64::from(input.factor())
    })
}

#[test]
fn products_are_within_the_bound_and_the_bound_is_sharp() {
    for seed in 0..20 {
        let (rows, cols) = (64, 32 * (1 + seed as usize % 9));
        let w = split(rows, cols, &random_rows(TY, rows, cols, seed));
        for depth in [0, 1, 4] {
            assert!(bound_holds(&w, &numbers(cols, seed + 50, 1.0), 1.0, depth));
        }
    }
    // An input that points where the residuals of a row do attains the bound: low nibbles of 0 are residuals of -8.
    let w = split(
        16,
        64,
        &rows_of(
            16,
            64,
            |_, _| 0.01,
            |_, column| if column % 2 == 0 { 0 } else { 15 },
        ),
    );
    let x: Vec<f32> = (0..64)
        .map(|column| if column % 2 == 0 { -8.0 } else { 7.0 })
        .collect();
    assert!(bound_holds(&w, &x, 1.0, 0));
    assert!(!bound_holds(&w, &x, 0.95, 0));
}

#[test]
fn the_best_rows_are_those_of_the_full_product() {
    for (seed, cols) in [(1, 64), (2, 288), (3, 640)] {
        let rows = 3001;
        let w = split(rows, cols, &random_rows(TY, rows, cols, seed));
        let x = numbers(5 * cols, seed + 9, 1.5);
        for isa in each_isa() {
            for count in [1, 3, 40] {
                let decided = assert_found(isa, &w, &x, count, &[7, 2999, 5000]);
                // The highest of so few rows is not far above the others.
                assert!(
                    decided >= 0.2 || count > 1 || cols < 640,
                    "{count} {cols} {decided}"
                );
            }
        }
    }
}

#[test]
fn adversarial_heads_are_searched_exactly() {
    let (rows, cols) = (2600, 96);
    let noise = |row: usize, column: usize| {
        (Random::new((row * 1000 + column) as u64).next() >> 56) as u8 as i8
    };
    type Code<'a> = &'a dyn Fn(usize, usize) -> i8;
    type Scale<'a> = &'a dyn Fn(usize, usize) -> f32;
    let heads: [(&str, Scale<'_>, Code<'_>); 8] = [
        ("rows in pairs", &|_, _| 0.01, &|row, column| {
            noise(row / 2, column)
        }),
        ("all rows alike", &|_, _| 0.01, &|_, column| {
            noise(1, column)
        }),
        ("all zero", &|_, _| 0.0, &noise),
        (
            "differences in low bits only",
            &|_, _| 0.01,
            &|row, column| (noise(1, column) as u8 & 0xf0 | noise(row, column) as u8 & 15) as i8,
        ),
        (
            "one large row",
            &|row, _| if row == 77 { 100.0 } else { 0.01 },
            &noise,
        ),
        ("extreme codes", &|_, _| 0.01, &|row, column| {
            if (row + column) % 3 == 0 { -128 } else { 127 }
        }),
        (
            "scales of both signs and sizes",
            &|row, block| [1e-7, -0.5, 0.003, -3e4][(row + block) % 4],
            &noise,
        ),
        (
            "mostly the same, some better",
            &|_, _| 0.01,
            &|row, column| {
                if row % 500 == 3 {
                    noise(row, column)
                } else {
                    1
                }
            },
        ),
    ];
    let inputs = [
        numbers(2 * cols, 5, 1.0),
        (0..2 * cols)
            .map(|i| if i % cols == 3 { 1e4 } else { 1e-3 })
            .collect(),
        vec![0.0; 2 * cols],
        (0..2 * cols)
            .map(|i| if i % 2 == 0 { -8.0 } else { 7.0 })
            .collect(),
    ];
    for (name, scale, code) in heads {
        let w = split(rows, cols, &rows_of(rows, cols, scale, code));
        for x in &inputs {
            for isa in each_isa() {
                for count in [1, 2, 40] {
                    let decided = assert_found(isa, &w, x, count, &[]);
                    assert!(name != "one large row" || x[0] == 0.0 || count > 1 || decided > 0.0);
                }
            }
        }
    }
}

#[test]
fn large_columns_are_screened_with_all_bits() {
    let pool = ThreadPool::new(2);
    let context = Context {
        isa: Isa::detect(),
        pool: &pool,
    };
    let (rows, cols) = (8192, 576);
    let w = split(rows, cols, &random_rows(TY, rows, cols, 12));
    let mut x = numbers(cols, 13, 1.0);
    // Most of the input in two columns, for which the rows hardly differ in their high nibbles.
    (x[100], x[300]) = (30.0, -25.0);
    let x = quantized(&context, &x, cols);
    let expected = best(&products(&context, &w, &x), 3);
    let mut screen = Screen::default();
    let wanted = [Best {
        count: 3,
        also: &[],
    }];
    let mut decided = Vec::new();
    for _ in 0..6 {
        screen.search(&context, &w, &x, &wanted, &mut |_, found| {
            decided.push(found.is_some());
            if let Some(found) = found {
                assert_eq!(found[..3], expected);
            }
        });
    }
    assert!(decided[3..].iter().all(|&decided| decided), "{decided:?}");
}

#[test]
fn what_is_not_a_number_is_left_to_the_full_product() {
    let (rows, cols) = (1024, 64);
    let mut raw = random_rows(TY, rows, cols, 2);
    let mut x = numbers(cols, 1, 1.0);
    x[5] = f32::NAN;
    assert_eq!(
        assert_found(Isa::detect(), &split(rows, cols, &raw), &x, 1, &[]),
        0.0
    );
    raw[34 * 2 * 700..][..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    assert!(!split(rows, cols, &raw).can_screen());
    raw[34 * 2 * 700..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    assert!(!split(rows, cols, &raw).can_screen());
}

#[test]
fn fewer_bytes_are_read() {
    let pool = ThreadPool::new(2);
    let context = Context {
        isa: Isa::detect(),
        pool: &pool,
    };
    let (rows, cols) = (20_000, 640);
    let w = split(rows, cols, &random_rows(TY, rows, cols, 5));
    // A row that stands out.
    let mut x = vec![0.0; cols];
    w.dequantize_row(1234, &mut x).unwrap();
    let x = quantized(&context, &x, cols);
    let mut screen = Screen::default();
    let wanted = [Best {
        count: 1,
        also: &[],
    }];
    screen.search(&context, &w, &x, &wanted, &mut |_, found| {
        assert!(found.is_some())
    });
    let read = screen.take_bytes_read();
    assert!(read * 10 < 6 * w.bytes() as u64, "{read} of {}", w.bytes());
    assert_eq!(screen.take_bytes_read(), 0);
    assert!(screen.bytes() >= 4 * rows);
}
