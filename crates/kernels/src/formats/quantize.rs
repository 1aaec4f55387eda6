//! Writes blocks.

use half::f16;

use crate::{KernelError, TensorType};

/// Appends `x` to `out` as blocks of Q8_0 or Q4_0.
///
/// Q8_0: the scale is the largest size / 127, codes round to the nearest. Q4_0: the number of the largest size becomes
/// code 0 (that is -8), codes round half up and stop at 15.
///
/// # Errors
/// For other formats, or when `x` does not fill whole blocks.
pub fn quantize(ty: TensorType, x: &[f32], out: &mut Vec<u8>) -> Result<(), KernelError> {
    let block: fn(&[f32], &mut Vec<u8>) = match ty {
        TensorType::Q8_0 => q8_0,
        TensorType::Q4_0 => q4_0,
        _ => return Err(KernelError::CannotQuantize(ty)),
    };
    if !x.len().is_multiple_of(32) {
        return Err(KernelError::PartialBlock {
            ty,
            columns: x.len(),
        });
    }
    x.chunks_exact(32).for_each(|x| block(x, out));
    Ok(())
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let largest = x.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(x.iter().map(|x| (x * inverse).round() as i8 as u8));
}

fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    let largest = x.iter().fold(
        0.0f32,
        |most, &x| if x.abs() > most.abs() { x } else { most },
    );
    let scale = largest / -8.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    let code = |x: f32| ((x * inverse + 8.5) as i8).clamp(0, 15) as u8;
    out.extend((0..16).map(|i| code(x[i]) | code(x[i + 16]) << 4));
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}
