//! The scanner: what to look for, every spelling of the text, and the findings.

use super::engine::{Engine, Hit};
use super::places::Places;
use super::{Dictionary, Entity, Strictness, Validity, context, decode};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use thiserror::Error;

/// Why a scanner cannot be made or cannot answer. Whoever gets one must treat the text as private.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ScanError {
    /// The built-in patterns do not compile: a defect of this crate.
    #[error("the scanner's patterns do not compile ({0}): report this")]
    Patterns(String),
    /// A user's dictionary is unusable.
    #[error("the dictionary of {entity} cannot be used: {reason}; shorten it")]
    Dictionary {
        /// What the dictionary's words count as.
        entity: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The time for the scan is over.
    #[error("the scan did not end within {0} ms: treat the text as private")]
    Timeout(u64),
    /// The text is longer than the scanner may read.
    #[error("the text has {0} bytes, more than the scanner may read: treat it as private")]
    TooLong(usize),
}

/// One finding in the original text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub entity: Entity,
    /// First byte.
    pub start: usize,
    /// Byte behind the last one.
    pub end: usize,
    /// What format and check digits alone say, 0 to 1.
    pub score: f32,
    /// The score, raised by words near it, 0 to 1.
    pub confidence: f32,
}

/// What a scan looks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanOptions {
    /// Only these kinds; `None` for every kind.
    pub entities: Option<BTreeSet<Entity>>,
    /// Least confidence of a finding, 0 to 1.
    pub min_confidence: f32,
    /// Whether numbers that merely fail a check that not every issuer applies are dropped.
    pub strictness: Strictness,
}

impl ScanOptions {
    /// The confidence from which a finding is worth acting on in ordinary text.
    pub const ORDINARY: f32 = 0.4;
}

/// Finds personal data and secrets. Cloning shares the compiled patterns.
#[derive(Clone)]
pub struct Scanner {
    engine: Arc<Engine>,
    dictionaries: Vec<Dictionary>,
    options: ScanOptions,
}

/// How often a spelling is read in a spelling: base64 of JSON of percent-encoded text is three.
const MAX_DEPTH: usize = 3;

impl Scanner {
    /// A scanner with no dictionary.
    ///
    /// # Errors
    /// [`ScanError::Patterns`] on a defect of this crate.
    pub fn new(options: ScanOptions) -> Result<Self, ScanError> {
        static ENGINE: OnceLock<Result<Arc<Engine>, ScanError>> = OnceLock::new();
        let engine = ENGINE.get_or_init(|| Engine::new().map(Arc::new)).clone()?;
        Ok(Self {
            engine,
            dictionaries: Vec::new(),
            options,
        })
    }

    /// The same with one more dictionary.
    #[must_use]
    pub fn with_dictionary(mut self, dictionary: Dictionary) -> Self {
        self.dictionaries.push(dictionary);
        self
    }

    /// The same scanner looking for something else.
    #[must_use]
    pub fn with_options(&self, options: ScanOptions) -> Self {
        Self {
            options,
            ..self.clone()
        }
    }

    /// What this scanner looks for.
    pub fn options(&self) -> &ScanOptions {
        &self.options
    }

    /// Every finding, by position. Overlapping findings of different kinds are all kept; of one kind only the surest.
    pub fn scan(&self, text: &str) -> Vec<Finding> {
        let mut stream = super::StreamScanner::new(self.clone());
        let mut findings = stream.push(text);
        findings.extend(stream.finish());
        findings
    }

    /// Every kind that this scanner can find without a dictionary.
    pub fn known_entities(&self) -> BTreeSet<Entity> {
        let special = [
            "IBAN_CODE",
            "EMAIL_ADDRESS",
            "URL",
            "PHONE_NUMBER",
            "TR_PHONE_NUMBER",
            "PH_MOBILE_NUMBER",
            "API_KEY",
            "ACCESS_TOKEN",
            "PRIVATE_KEY",
            "PASSWORD",
        ];
        let table = self.engine.recognizers().iter().map(|r| r.entity.clone());
        table.chain(special.into_iter().map(Entity::new)).collect()
    }

    /// What the check of `entity` says about `text` as it stands; `None` for kinds without a table entry.
    pub fn validate(&self, entity: &Entity, text: &str) -> Option<Validity> {
        let recognizer = self
            .engine
            .recognizers()
            .iter()
            .find(|r| r.entity == *entity)?;
        let alone = ScanOptions {
            entities: Some([entity.clone()].into()),
            min_confidence: 0.0,
            ..self.options.clone()
        };
        let whole = self
            .with_options(alone)
            .window(text)
            .into_iter()
            .find(|f| f.start == 0 && f.end == text.len());
        match whole {
            Some(finding) if finding.score >= 1.0 => Some(Validity::Valid),
            Some(_) => Some(Validity::Unknown),
            None if recognizer.patterns.is_empty() => None,
            None => Some(Validity::Invalid),
        }
    }

    /// The findings of one window of text, in every spelling.
    pub(super) fn window(&self, text: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.spellings(text, MAX_DEPTH, &mut findings);
        findings.retain(|finding| {
            finding.confidence >= self.options.min_confidence && finding.score > 0.0
        });
        findings.sort_by(|a, b| {
            (a.start, a.end, &a.entity)
                .cmp(&(b.start, b.end, &b.entity))
                .then(b.confidence.total_cmp(&a.confidence))
        });
        findings.dedup_by(|a, b| a.entity == b.entity && a.start == b.start && a.end == b.end);
        findings
    }

    /// Scans `text`, then each other spelling of it; adds what no finding of the same kind covers yet.
    fn spellings(&self, text: &str, depth: usize, findings: &mut Vec<Finding>) {
        let folded = decode::folded(text);
        let plain = folded.as_ref().map_or(text, |view| view.text.as_str());
        let places = Places::of(plain);
        let mut own = self.plain(plain, &places);
        if depth > 0 {
            if let Some(view) = decode::unescaped(plain, &places.escapes) {
                let mut inner = Vec::new();
                self.spellings(&view.text, depth - 1, &mut inner);
                for mut finding in inner {
                    let source = view.source(finding.start..finding.end);
                    (finding.start, finding.end) = (source.start, source.end);
                    own.push(finding);
                }
            }
            for (range, decoded) in decode::encoded_runs(plain, &places.dense) {
                let mut inner = Vec::new();
                self.spellings(&decoded, depth - 1, &mut inner);
                // What is encoded cannot be cut out, so the whole run goes.
                own.extend(inner.into_iter().map(|finding| Finding {
                    start: range.start,
                    end: range.end,
                    ..finding
                }));
            }
        }
        if let Some(view) = &folded {
            for finding in &mut own {
                let source = view.source(finding.start..finding.end);
                (finding.start, finding.end) = (source.start, source.end);
            }
        }
        findings.append(&mut own);
    }

    /// Scans text that is already folded.
    fn plain(&self, text: &str, places: &Places) -> Vec<Finding> {
        let wanted = |entity: &Entity| {
            self.options
                .entities
                .as_ref()
                .is_none_or(|set| set.contains(entity))
        };
        let mut hits = self
            .engine
            .scan(text, places, self.options.strictness, &wanted);
        for dictionary in &self.dictionaries {
            dictionary.find(text, &wanted, &mut hits);
        }
        hits.into_iter().map(|hit| finding(text, hit)).collect()
    }
}

fn finding(text: &str, hit: Hit) -> Finding {
    let confidence = context::confidence(text, hit.start..hit.end, hit.score, hit.context);
    Finding {
        entity: hit.entity,
        start: hit.start,
        end: hit.end,
        score: hit.score,
        confidence,
    }
}
