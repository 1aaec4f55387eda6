//! Loops that do nothing but read memory or multiply bytes, to measure what a machine can do.

use crate::Isa;

/// Reads `data` once; the result depends on all of it.
pub(crate) fn read(isa: Isa, data: &[u64]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: the features were found.
            unsafe { read_avx512(data) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if Isa::Avx2.is_available() => {
            // SAFETY: the features were found.
            unsafe { read_avx2(data) }
        }
        _ => read_words(data),
    }
}

/// 8-bit multiply-accumulates of one round of [`multiply`].
pub(crate) const ROUND_MACS: usize = 12 * 64;

/// Does `rounds` times [`ROUND_MACS`] 8-bit multiply-accumulates in registers.
pub(crate) fn multiply(isa: Isa, rounds: usize) -> i32 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: the features were found.
            unsafe { multiply_avx512(rounds) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if Isa::Avx2.is_available() => {
            // SAFETY: the features were found.
            unsafe { multiply_avx2(rounds) }
        }
        _ => multiply_bytes(rounds),
    }
}

#[inline(always)]
fn read_words(data: &[u64]) -> u64 {
    let mut sums = [0u64; 64];
    let (lines, rest) = data.as_chunks::<64>();
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum ^= word;
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum ^ word)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(data: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    let (lines, rest) = data.as_chunks::<64>();
    for line in lines {
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight words of the 64.
            let words = unsafe { _mm512_loadu_si512(line.as_ptr().add(8 * index).cast()) };
            *sum = _mm512_xor_si512(*sum, words);
        }
    }
    let sum = sums
        .into_iter()
        .fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b));
    rest.iter()
        .fold(_mm512_reduce_add_epi64(sum) as u64, |sum, word| sum ^ word)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2(data: &[u64]) -> u64 {
    read_words(data)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_avx512(rounds: usize) -> i32 {
    use std::arch::x86_64::*;
    let a = _mm512_set1_epi8(std::hint::black_box(3));
    let b = _mm512_set1_epi8(std::hint::black_box(2));
    let mut sums = [_mm512_setzero_si512(); 12];
    for round in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
        // Rare enough to cost nothing, and the compiler cannot sum the rounds up in advance.
        if round % 1024 == 1023 {
            sums = std::hint::black_box(sums);
        }
    }
    sums.into_iter()
        .map(|sum| _mm512_reduce_add_epi32(sum))
        .fold(0, i32::wrapping_add)
}

/// The usual sequence without VNNI: products in pairs, widened, added.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(rounds: usize) -> i32 {
    use std::arch::x86_64::*;
    let one = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); 12];
    let mut a = _mm256_set1_epi8(std::hint::black_box(3));
    let b = _mm256_set1_epi8(std::hint::black_box(2));
    for round in 0..rounds {
        for sum in &mut sums {
            let first = _mm256_maddubs_epi16(_mm256_xor_si256(a, *sum), b);
            let second = _mm256_maddubs_epi16(_mm256_or_si256(a, *sum), b);
            let pairs = _mm256_add_epi16(first, second);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, one));
        }
        if round % 1024 == 1023 {
            a = std::hint::black_box(a);
        }
    }
    let mut total = 0i32;
    for sum in sums {
        let mut lanes = [0i32; 8];
        // SAFETY: eight lanes into eight words.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        total = lanes
            .iter()
            .fold(total, |total, lane| total.wrapping_add(*lane));
    }
    total
}

fn multiply_bytes(rounds: usize) -> i32 {
    let a: [u8; 64] = std::hint::black_box([3; 64]);
    let mut sums = [0i32; 64];
    for round in 0..rounds * 12 {
        let b = std::hint::black_box(round as i8);
        for (sum, a) in sums.iter_mut().zip(a) {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

/// Bytes of a core's second-level cache; what small cores have where the system does not say.
pub(crate) fn second_level_cache_bytes() -> usize {
    const SMALL: usize = 256 << 10;
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size");
        let kibibytes = size
            .ok()
            .and_then(|size| size.trim().strip_suffix('K')?.parse().ok());
        kibibytes.map_or(SMALL, |kibibytes: usize| kibibytes.saturating_mul(1 << 10))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::test_support::each_isa;

    #[test]
    fn readers_depend_on_every_word() {
        let mut data = vec![0u64; 1000];
        for isa in each_isa() {
            for index in [0, 1, 63, 64, 500, 959, 960, 999] {
                assert_eq!(read(isa, &data), 0);
                data[index] = 5;
                assert_eq!(read(isa, &data), 5, "{isa:?} {index}");
                data[index] = 0;
            }
            multiply(isa, 3);
        }
    }
}
