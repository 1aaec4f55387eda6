//! Every format: what is written is read back, and near the numbers.

use ondine_compress::{Effort, Encoder, writable};
use ondine_fixtures::Random;
use ondine_kernels::{Isa, TensorType, dequantize};

const COLUMNS: usize = 512;
const ROWS: usize = 6;

/// Largest relative root mean square error of normal numbers, by type: about what the format's bits allow.
fn bound(ty: TensorType) -> f64 {
    use TensorType::*;
    match ty {
        F32 => 0.0,
        F16 => 3e-4,
        BF16 => 3e-3,
        Q8_0 => 6e-3,
        Q6_K => 0.019,
        Q5_K | Q5_1 => 0.042,
        Q5_0 => 0.046,
        Q4_K | Q4_1 => 0.085,
        Q4_0 | IQ4_NL | IQ4_XS => 0.09,
        MXFP4 => 0.13,
        Q3_K => 0.18,
        Q2_K => 0.33,
        TQ2_0 => 0.46,
        TQ1_0 => unreachable!("not written"),
    }
}

fn numbers(seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..ROWS * COLUMNS)
        .map(|_| 0.03 * random.normal())
        .collect()
}

fn encode(
    ty: TensorType,
    effort: Effort,
    isa: Isa,
    x: &[f32],
    weights: &[f32],
) -> (Vec<u8>, Vec<f32>) {
    let encoder = Encoder::new(ty, effort, isa).unwrap();
    let mut blocks = vec![0; ty.row_bytes(x.len()).unwrap()];
    encoder.rows(x, COLUMNS, weights, &mut blocks);
    let mut back = vec![0.0; x.len()];
    dequantize(ty, &blocks, &mut back).unwrap();
    (blocks, back)
}

/// Σ w (x - y)² / Σ w x².
fn loss(x: &[f32], y: &[f32], weights: &[f32]) -> f64 {
    let (mut error, mut all) = (0.0, 0.0);
    for (index, (x, y)) in x.iter().zip(y).enumerate() {
        let w = f64::from(weights[index % COLUMNS]);
        error += w * f64::from(x - y).powi(2);
        all += w * f64::from(*x).powi(2);
    }
    error / all
}

fn types() -> impl Iterator<Item = TensorType> {
    TensorType::ALL.into_iter().filter(|ty| writable(*ty))
}

#[test]
fn normal_numbers_come_back() {
    let x = numbers(1);
    let even = [1.0; COLUMNS];
    for ty in types() {
        let (_, back) = encode(ty, Effort::Search, Isa::detect(), &x, &even);
        let error = loss(&x, &back, &even).sqrt();
        assert!(error <= bound(ty), "{ty}: {error}");
        let (_, back) = encode(ty, Effort::Nearest, Isa::detect(), &x, &even);
        let nearest = loss(&x, &back, &even).sqrt();
        assert!(error <= nearest * 1.0001, "{ty}: {error} against {nearest}");
        // The bound can fail: as many levels, one step off.
        let shifted: Vec<f32> = back.iter().map(|y| y * 1.6).collect();
        assert!(bound(ty) < loss(&x, &shifted, &even).sqrt(), "{ty}");
    }
}

#[test]
fn every_instruction_set_writes_the_same_blocks() {
    let x = numbers(2);
    let mut random = Random::new(3);
    let weights: Vec<f32> = (0..COLUMNS).map(|_| 0.1 + random.uniform()).collect();
    for ty in types() {
        for effort in [Effort::Nearest, Effort::Search] {
            let (expected, _) = encode(ty, effort, Isa::Scalar, &x, &weights);
            for isa in [Isa::Avx2, Isa::Avx512] {
                let (found, _) = encode(ty, effort, isa, &x, &weights);
                assert!(found == expected, "{ty} {effort:?} {isa:?}");
            }
        }
    }
}

#[test]
fn important_columns_lose_less() {
    let x = numbers(4);
    let even = [1.0; COLUMNS];
    let weights: Vec<f32> = (0..COLUMNS)
        .map(|i| if i % 8 == 0 { 50.0 } else { 0.1 })
        .collect();
    for ty in types().filter(|ty| ty.block_len() > 1 && *ty != TensorType::Q8_0) {
        let (_, with) = encode(ty, Effort::Search, Isa::detect(), &x, &weights);
        let (_, without) = encode(ty, Effort::Search, Isa::detect(), &x, &even);
        let (with, without) = (loss(&x, &with, &weights), loss(&x, &without, &weights));
        assert!(with <= without, "{ty}: {with} against {without}");
        if matches!(ty, TensorType::Q4_K | TensorType::Q3_K | TensorType::IQ4_NL) {
            assert!(with < 0.8 * without, "{ty}: {with} against {without}");
        }
    }
}

#[test]
fn what_was_of_the_type_comes_back_nearly_exact() {
    let x = numbers(5);
    let even = [1.0; COLUMNS];
    for ty in [
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q8_0,
    ] {
        let (_, once) = encode(ty, Effort::Nearest, Isa::detect(), &x, &even);
        let (_, twice) = encode(ty, Effort::Search, Isa::detect(), &once, &even);
        let error = loss(&once, &twice, &even).sqrt();
        assert!(error < 1e-3, "{ty}: {error}");
    }
}

#[test]
fn extremes_stay_finite() {
    let even = [1.0; COLUMNS];
    let mut rows = vec![
        vec![0.0; COLUMNS],
        vec![1.0; COLUMNS],
        vec![-3.5; COLUMNS],
        vec![1e-20; COLUMNS],
        vec![1e20; COLUMNS],
        vec![f32::MAX; COLUMNS],
        vec![f32::MIN_POSITIVE; COLUMNS],
    ];
    let mut spike = vec![0.0; COLUMNS];
    spike[17] = -1e4;
    rows.push(spike);
    for ty in types() {
        for effort in [Effort::Nearest, Effort::Search] {
            for x in &rows {
                let (_, back) = encode(ty, effort, Isa::detect(), x, &even);
                let holds = x.iter().all(|x| x.abs() < 6e4) || ty == TensorType::MXFP4;
                assert!(
                    back.iter().all(|y| y.is_finite()) || !holds && ty.block_len() == 1,
                    "{ty} {effort:?} {}",
                    x[0]
                );
                if x[17] == -3.5 && ty != TensorType::TQ2_0 {
                    let error = loss(x, &back, &even).sqrt();
                    assert!(error < 0.15, "{ty} {effort:?}: {error}");
                }
            }
            let zero = encode(ty, effort, Isa::detect(), &rows[0], &even).1;
            assert!(zero.iter().all(|y| *y == 0.0), "{ty} {effort:?}");
        }
    }
}
