//! How far a backend is from another one: does the likeliest token stay the same, how far apart are the distributions?

use ondine_kernels::ops::argmax;
use ondine_runtime::backend::{BackendError, Decoder, Run, Scores, Select, SequenceId, Wanted};
use ondine_runtime::fidelity::{Agreement, divergence};

/// Tokens whose logits are kept together.
const STEP: usize = 32;

/// Compares `decoder` with `reference` over the first `positions` positions of `tokens` in windows of `window`, both reading
/// the same tokens, whatever they would have chosen; `begin` replaces each window's first token. `progress` hears
/// (positions done, positions in all) and says whether to go on. Returns (positions compared, agreement).
///
/// # Errors
/// See [`BackendError`].
pub fn agreement(
    decoder: &mut dyn Decoder,
    reference: &mut dyn Decoder,
    tokens: &[u32],
    window: usize,
    positions: usize,
    begin: Option<u32>,
    mut progress: impl FnMut(usize, usize) -> bool,
) -> Result<(usize, Agreement), BackendError> {
    let (mut done, mut result) = (0, Agreement::default());
    let positions = positions.min(tokens.len());
    for content in tokens[..positions].chunks(window.max(1)) {
        let mut content = content.to_vec();
        if let Some(begin) = begin {
            content[0] = begin;
        }
        let (sequence, expected_sequence) = (decoder.start(), reference.start());
        for part in content.chunks(STEP) {
            let expected = logits(reference, expected_sequence, part)?;
            let found = logits(decoder, sequence, part)?;
            for (expected, found) in expected.iter().zip(&found) {
                let apart = divergence(expected, found);
                result.same_best += usize::from(argmax(expected) == argmax(found));
                result.divergence += apart;
                result.largest_divergence = result.largest_divergence.max(apart);
                done += 1;
            }
            if !progress(done, positions) {
                return Ok((done, result));
            }
        }
        decoder.stop(sequence);
        reference.stop(expected_sequence);
    }
    Ok((done, result))
}

/// Logits after each of `tokens`.
fn logits(
    decoder: &mut dyn Decoder,
    sequence: SequenceId,
    tokens: &[u32],
) -> Result<Vec<Vec<f32>>, BackendError> {
    let mut out = Vec::with_capacity(tokens.len());
    let run = Run {
        sequence,
        tokens,
        wanted: Wanted::From(0),
        select: Select::All,
    };
    decoder.forward(&[run], &mut |scored| {
        if let Scores::All(logits) = scored.scores {
            out.push(logits.to_vec());
        }
    })?;
    Ok(out)
}
