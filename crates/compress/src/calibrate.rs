//! Runs a text through a model and keeps what its matrices were given.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ondine_kernels::{Isa, ThreadPool};
use ondine_runtime::Model;
use ondine_runtime::backend::cpu::{CpuBackend, available_threads};
use ondine_runtime::backend::{LoadOptions, Observer, Run, Select, Wanted};
use ondine_runtime::model::Linear;
use ondine_runtime::tokenizer::EncodeOptions;

use crate::CompressError;
use crate::imatrix::{Importance, ImportanceMatrix};
use crate::linear_algebra::add_gram;

/// The text's tokens in windows, as `ondine perplexity` cuts them.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Tokens, whole windows.
    pub tokens: Vec<u32>,
    /// Tokens of a window.
    pub length: usize,
}

impl Windows {
    /// Cuts `text` for `model` into at most `most` windows, spread over the text.
    ///
    /// # Errors
    /// When there is not one window.
    pub fn of(
        model: &Model,
        text: &str,
        length: usize,
        most: usize,
    ) -> Result<Self, CompressError> {
        let tokenizer = model.tokenizer();
        let options = EncodeOptions {
            add_special: true,
            parse_special: false,
        };
        let all = tokenizer.encode(text.strip_suffix('\n').unwrap_or(text), options);
        let count = all.len() / length.max(1);
        if count == 0 || length < 4 {
            return Err(CompressError::Invalid(format!(
                "the text has {} tokens, too few for a window of {length}; give more text",
                all.len()
            )));
        }
        let begin = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
        let kept = count.min(most.max(1));
        let mut tokens = Vec::with_capacity(kept * length);
        for index in 0..kept {
            let start = index * count / kept * length;
            let at = tokens.len();
            tokens.extend_from_slice(&all[start..start + length]);
            if let Some(begin) = begin {
                tokens[at] = begin;
            }
        }
        Ok(Windows { tokens, length })
    }

    /// The windows.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.length)
    }
}

/// Measures the importance of every column of `model`'s matrices, the output head's included.
///
/// # Errors
/// When the model cannot be computed; [`CompressError::Interrupted`] when `progress` (windows done, of all) says no.
pub fn calibrate(
    model: &Model,
    windows: &Windows,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<ImportanceMatrix, CompressError> {
    let collector = Arc::new(Collector::new(model, None));
    compute(model, windows, collector.clone(), progress)?;
    let state = collector
        .state
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let tensors = state.importance.clone();
    Ok(ImportanceMatrix {
        tensors,
        datasets: Vec::new(),
        chunks: windows.iter().count() as u32,
        chunk_tokens: windows.length as u32,
    })
}

/// Gram matrices Xᵀ X of the inputs of some tensors; tensors that read the same input share one.
#[derive(Debug, Clone, Default)]
pub struct Grams {
    /// By tensor name. Of each matrix, [columns, columns], only what is right of the diagonal is kept.
    pub matrices: HashMap<String, Arc<Vec<f32>>>,
}

/// The Gram matrices of `tensors`, and the importance of all.
///
/// # Errors
/// As [`calibrate`].
pub fn grams(
    model: &Model,
    windows: &Windows,
    tensors: &HashSet<String>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Grams, CompressError> {
    let collector = Arc::new(Collector::new(model, Some(tensors.clone())));
    compute(model, windows, collector.clone(), progress)?;
    let mut state = collector
        .state
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let sites = std::mem::take(&mut state.sites);
    let sites: HashMap<String, Arc<Vec<f32>>> = sites
        .into_iter()
        .map(|(name, gram)| (name, Arc::new(gram)))
        .collect();
    let matrices = state
        .site_of
        .iter()
        .filter_map(|(tensor, site)| Some((tensor.clone(), sites.get(site)?.clone())))
        .collect();
    Ok(Grams { matrices })
}

fn compute(
    model: &Model,
    windows: &Windows,
    collector: Arc<Collector>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<(), CompressError> {
    let options = LoadOptions {
        context: Some(windows.length),
        observer: Some(collector),
        ..LoadOptions::default()
    };
    let backend = CpuBackend::with_isa(Isa::detect());
    let mut decoder = model.load(&backend, &options)?;
    let all = windows.iter().count();
    for (index, tokens) in windows.iter().enumerate() {
        if !progress(index, all) {
            return Err(CompressError::Interrupted);
        }
        let sequence = decoder.start();
        let run = Run {
            sequence,
            tokens,
            // The head sees what is scored.
            wanted: Wanted::From(0),
            select: Select::All,
        };
        let computed = decoder.forward(&[run], &mut |_| {});
        decoder.stop(sequence);
        computed?;
    }
    progress(all, all);
    Ok(())
}

/// Keeps sums of squares of all inputs, and Gram matrices of some.
struct Collector {
    isa: Isa,
    pool: ThreadPool,
    /// Matrices of each tensor that has several, and their rows.
    stacks: HashMap<String, (usize, usize)>,
    wanted: Option<HashSet<String>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    importance: BTreeMap<String, Importance>,
    /// Gram matrices by the first tensor that reads the input.
    sites: HashMap<String, Vec<f32>>,
    site_of: HashMap<String, String>,
}

impl Collector {
    fn new(model: &Model, wanted: Option<HashSet<String>>) -> Self {
        let stacked = model
            .file()
            .tensors()
            .iter()
            .filter(|tensor| tensor.shape.len() == 3);
        Collector {
            isa: Isa::detect(),
            pool: ThreadPool::new(available_threads()),
            stacks: stacked
                .map(|tensor| {
                    let matrices = tensor.shape[2] as usize;
                    (tensor.name.clone(), (matrices, tensor.shape[1] as usize))
                })
                .collect(),
            wanted,
            state: Mutex::default(),
        }
    }

    fn gram(&self, state: &mut State, names: &[&str], x: &[f32], columns: usize) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        let wanted: Vec<&&str> = names
            .iter()
            .filter(|name| wanted.contains(**name) && !self.stacks.contains_key(**name))
            .collect();
        let Some(first) = wanted.first() else {
            return;
        };
        for name in &wanted {
            state
                .site_of
                .insert((**name).to_owned(), (**first).to_owned());
        }
        let gram = state
            .sites
            .entry((**first).to_owned())
            .or_insert_with(|| vec![0.0; columns * columns]);
        add_gram(self.isa, &self.pool, x, columns, gram);
    }
}

impl Observer for Collector {
    fn observe(&self, matrices: &[&Linear], x: &[f32], columns: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = (x.len() / columns.max(1)) as f32;
        let mut squares = vec![0.0f32; columns];
        for x in x.chunks_exact(columns) {
            for (square, x) in squares.iter_mut().zip(x) {
                *square += x * x;
            }
        }
        let mut names: Vec<&str> = Vec::new();
        for linear in matrices {
            let (count, rows) = self
                .stacks
                .get(&linear.weight)
                .copied()
                .unwrap_or((1, usize::MAX));
            // Parts of one tensor that read the same input count once.
            if names.contains(&linear.weight.as_str()) {
                continue;
            }
            names.push(&linear.weight);
            let index = (linear.first_row / rows.max(1)).min(count - 1);
            let importance = state
                .importance
                .entry(linear.weight.clone())
                .or_insert_with(|| Importance {
                    columns,
                    sums: vec![0.0; count * columns],
                    counts: vec![0.0; count],
                });
            let sums = &mut importance.sums[index * columns..(index + 1) * columns];
            for (sum, square) in sums.iter_mut().zip(&squares) {
                *sum += square;
            }
            importance.counts[index] += tokens;
        }
        self.gram(&mut state, &names, x, columns);
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}
