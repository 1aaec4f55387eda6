//! A model that is measured, and its results.

use std::sync::Arc;

use ondine_kernels::ops::argmax;
use ondine_runtime::Model;
use ondine_runtime::backend::{Decoder, Run, Scores, Select, Wanted};
use ondine_runtime::chat_template::{ChatRequest, Message};
use ondine_runtime::perplexity::log_probability;
use ondine_runtime::tokenizer::EncodeOptions;
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::suite::{Check, Item, Suite, Task, TaskKind};
use crate::CompressError;
use crate::calibrate::Windows;
use crate::comparison::compare;

/// A model with its decoder.
pub struct Subject {
    /// The model.
    pub model: Arc<Model>,
    /// What computes it.
    pub decoder: Box<dyn Decoder>,
}

/// What a task gave.
#[derive(Debug, Clone, Serialize)]
pub struct TaskResult {
    /// The task's name.
    pub name: String,
    /// Whether scores are losses (nats per token; less is better) and not shares of right answers.
    pub is_loss: bool,
    /// Item by item.
    pub items: Vec<ItemResult>,
}

/// What an item gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// What was asked, shortened.
    pub question: String,
    /// What would be right.
    pub expected: String,
    /// What came.
    pub answer: String,
    /// Loss, or 1 for right and 0 for wrong.
    pub score: f64,
    /// Mean divergence from the reference, nats, where there is one and the task is a text.
    pub divergence: Option<f64>,
    /// Share of positions with the reference's likeliest token.
    pub same_best: Option<f64>,
    /// Hash of the tokens that the model read: differs when the tokenizer or the template does.
    pub tokens: String,
}

impl Subject {
    /// Measures every item of `suite`; of texts, also how far the predictions are from `reference`'s. `progress` hears the task, items
    /// done and in all, and says whether to go on.
    ///
    /// # Errors
    /// When the model cannot be computed; [`CompressError::Interrupted`] when `progress` says no.
    pub fn measure(
        &mut self,
        suite: &Suite,
        mut reference: Option<&mut Subject>,
        cache: &Cache,
        progress: &mut dyn FnMut(&str, usize, usize) -> bool,
    ) -> Result<Vec<TaskResult>, CompressError> {
        let mut out = Vec::with_capacity(suite.tasks.len());
        for task in &suite.tasks {
            let mut items = Vec::new();
            for (index, item) in task.items.iter().enumerate() {
                if !progress(&task.name, index, task.items.len()) {
                    return Err(CompressError::Interrupted);
                }
                let reference = reference.as_deref_mut();
                match (task.kind, item) {
                    (TaskKind::Text { window, windows }, Item::Text(text)) => {
                        let windows = Windows::of(&self.model, text, window, windows)?;
                        let all = windows.iter().count();
                        let mut reference = reference;
                        for (index, tokens) in windows.iter().enumerate() {
                            let reference = reference.as_deref_mut();
                            items.push(self.window(tokens, reference, cache)?);
                            if !progress(&task.name, index + 1, all) {
                                return Err(CompressError::Interrupted);
                            }
                        }
                    }
                    (
                        _,
                        Item::Choice {
                            query,
                            choices,
                            gold,
                        },
                    ) => items.push(self.choice(query, choices, *gold, cache)?),
                    (TaskKind::Prompt { max_tokens, chat }, Item::Prompt { prompt, check }) => {
                        items.push(self.prompt(prompt, check, max_tokens, chat, cache)?);
                    }
                    _ => {}
                }
            }
            out.push(TaskResult {
                name: task.name.clone(),
                is_loss: is_loss(task),
                items,
            });
        }
        Ok(out)
    }

    fn window(
        &mut self,
        tokens: &[u32],
        reference: Option<&mut Subject>,
        cache: &Cache,
    ) -> Result<ItemResult, CompressError> {
        let hash = self.hash()?;
        let mut result = match reference {
            Some(reference) => {
                let key = ("window", &hash, Some(reference.hash()?), tokens);
                cache.get(&key, || {
                    let windows = Windows {
                        tokens: tokens.to_vec(),
                        length: tokens.len(),
                    };
                    let (decoder, reference) = (&mut *self.decoder, &mut *reference.decoder);
                    let found = compare(decoder, reference, &windows, &mut |_, _, _| true)?;
                    let same = found.mean(|p| f64::from(u8::from(p.same_best))).0;
                    Ok(ItemResult {
                        answer: String::new(),
                        score: found.mean(|p| p.loss).0,
                        divergence: Some(found.divergence()),
                        same_best: Some(same),
                        ..ItemResult::default()
                    })
                })?
            }
            None => {
                let key = ("window", &hash, None::<String>, tokens);
                cache.get(&key, || {
                    let losses = losses(self.decoder.as_mut(), tokens, tokens.len() / 2)?;
                    Ok(ItemResult {
                        score: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
                        ..ItemResult::default()
                    })
                })?
            }
        };
        let text = self.model.tokenizer().decode(tokens, false);
        result.question = shortened(&text);
        result.answer = format!("perplexity {:.3}", result.score.exp());
        result.tokens = fingerprint(tokens);
        Ok(result)
    }

    /// The choice whose text is likeliest for each of its bytes: the field's length-normalised accuracy.
    fn choice(
        &mut self,
        query: &str,
        choices: &[String],
        gold: usize,
        cache: &Cache,
    ) -> Result<ItemResult, CompressError> {
        let context = format!("{query}\nAnswer:");
        let begin = self.encode(&context);
        let texts: Vec<Vec<u32>> = choices
            .iter()
            .map(|choice| self.encode(&format!("{context} {choice}")))
            .collect();
        let key = ("choice", self.hash()?, &texts, choices);
        let likelihoods: Vec<f64> = cache.get(&key, || {
            let each = texts.iter().zip(choices).map(|(tokens, choice)| {
                // The context's tokens may run together with the choice's.
                let same = begin.iter().zip(tokens).take_while(|(a, b)| a == b);
                let first = same.count().clamp(1, tokens.len().max(2) - 1);
                let losses = losses(self.decoder.as_mut(), tokens, first - 1)?;
                Ok(-losses.iter().sum::<f64>() / choice.len().max(1) as f64)
            });
            each.collect::<Result<_, CompressError>>()
        })?;
        let best = likelihoods
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)))
            .map_or(0, |(index, _)| index);
        Ok(ItemResult {
            question: shortened(query),
            expected: choices.get(gold).cloned().unwrap_or_default(),
            answer: choices.get(best).cloned().unwrap_or_default(),
            score: f64::from(u8::from(best == gold)),
            divergence: None,
            same_best: None,
            tokens: fingerprint(&texts.concat()),
        })
    }

    fn prompt(
        &mut self,
        prompt: &str,
        check: &Check,
        max_tokens: usize,
        chat: bool,
        cache: &Cache,
    ) -> Result<ItemResult, CompressError> {
        let tokens = if chat {
            let request = ChatRequest::new(vec![Message::user(prompt)]);
            let rendered = self
                .model
                .chat_template()
                .and_then(|template| template.render(&request))
                .map_err(|error| CompressError::Invalid(error.to_string()))?;
            self.model.encode_rendered(&rendered)
        } else {
            self.encode(prompt)
        };
        let key = ("prompt", self.hash()?, &tokens, max_tokens);
        let answer: String = cache.get(&key, || {
            let answer = likeliest(self.decoder.as_mut(), &self.model, &tokens, max_tokens)?;
            Ok(self.model.tokenizer().decode(&answer, false))
        })?;
        Ok(ItemResult {
            question: shortened(prompt),
            expected: check.describe(),
            score: f64::from(u8::from(check.holds(&answer, &self.model)?)),
            answer,
            divergence: None,
            same_best: None,
            tokens: fingerprint(&tokens),
        })
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let options = EncodeOptions {
            add_special: true,
            parse_special: false,
        };
        self.model.tokenizer().encode(text, options)
    }

    fn hash(&self) -> Result<String, CompressError> {
        let hash = self.model.hash().map_err(|source| CompressError::Io {
            path: self.model.path().display().to_string(),
            source,
        })?;
        Ok(hash.to_hex().to_string())
    }
}

impl Default for ItemResult {
    fn default() -> Self {
        ItemResult {
            question: String::new(),
            expected: String::new(),
            answer: String::new(),
            score: 0.0,
            divergence: None,
            same_best: None,
            tokens: String::new(),
        }
    }
}

fn is_loss(task: &Task) -> bool {
    matches!(task.kind, TaskKind::Text { .. })
}

fn fingerprint(tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..16].to_owned()
}

fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Negative log-likelihoods of the tokens that follow `tokens[from..]`, nats.
fn losses(
    decoder: &mut dyn Decoder,
    tokens: &[u32],
    from: usize,
) -> Result<Vec<f64>, CompressError> {
    let mut out = Vec::new();
    let Some((_, read)) = tokens.split_last() else {
        return Ok(out);
    };
    let sequence = decoder.start();
    let run = Run {
        sequence,
        tokens: read,
        wanted: Wanted::From(from),
        select: Select::All,
    };
    let computed = decoder.forward(&[run], &mut |scored| {
        if let Scores::All(logits) = scored.scores {
            out.push(-log_probability(logits, tokens[scored.token + 1] as usize));
        }
    });
    decoder.stop(sequence);
    computed?;
    Ok(out)
}

/// The likeliest tokens after `prompt`, one after the other.
fn likeliest(
    decoder: &mut dyn Decoder,
    model: &Model,
    prompt: &[u32],
    most: usize,
) -> Result<Vec<u32>, CompressError> {
    let sequence = decoder.start();
    let computed = (|| {
        let (mut answer, mut pending) = (Vec::new(), prompt.to_vec());
        while answer.len() < most {
            let mut next = None;
            let run = Run {
                sequence,
                tokens: &pending,
                wanted: Wanted::Last,
                select: Select::All,
            };
            decoder.forward(&[run], &mut |scored| {
                if let Scores::All(logits) = scored.scores {
                    next = argmax(logits).map(|token| token as u32);
                }
            })?;
            match next {
                Some(next) if !model.tokenizer().is_end_of_generation(next) => {
                    answer.push(next);
                    pending = vec![next];
                }
                _ => break,
            }
        }
        Ok(answer)
    })();
    decoder.stop(sequence);
    computed
}
