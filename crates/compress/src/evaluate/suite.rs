//! What is measured: a TOML file that names texts, questions and prompts.

use std::path::Path;

use ondine_runtime::Model;
use ondine_runtime::constraint::{ConstraintError, ConstraintSpec};
use ondine_runtime::tokenizer::EncodeOptions;
use serde::Deserialize;
use serde_json::Value;

use crate::CompressError;

/// Bytes of a file that a suite names, at most.
const FILE_BYTES: u64 = 256 << 20;

/// A suite, its files read.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// In the order of the file: texts, choices, prompts.
    pub tasks: Vec<Task>,
    /// What a gate lets pass.
    pub margins: Margins,
}

/// How much worse a candidate may be.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Margins {
    /// Rise of the mean negative log-likelihood, nats per token; 0.02 is 2 % of perplexity.
    pub loss: f64,
    /// Mean Kullback-Leibler divergence from the baseline, nats.
    pub kl: f64,
    /// Fall of a share of right answers.
    pub accuracy: f64,
    /// Confidence of the one-sided bounds that must keep to these.
    pub confidence: f64,
}

impl Default for Margins {
    fn default() -> Self {
        Margins {
            loss: 0.02,
            kl: 0.05,
            accuracy: 0.02,
            confidence: 0.95,
        }
    }
}

/// Items that are measured alike.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// How they are measured.
    pub kind: TaskKind,
    /// What is measured.
    pub items: Vec<Item>,
}

/// How items are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Loss of a text's tokens, in windows; each is an item.
    Text {
        /// Tokens of a window.
        window: usize,
        /// Windows at most.
        windows: usize,
    },
    /// The choice of the highest likelihood for each byte.
    Choice,
    /// Text generated after a prompt.
    Prompt {
        /// Tokens at most.
        max_tokens: usize,
        /// Whether the prompt is what a user says, rendered by the chat template.
        chat: bool,
    },
}

/// One thing that is measured.
#[derive(Debug, Clone)]
pub enum Item {
    /// A text, which becomes as many items as it has windows.
    Text(String),
    /// A question.
    Choice {
        /// What comes before.
        query: String,
        /// The answers to choose from.
        choices: Vec<String>,
        /// Which one is right.
        gold: usize,
    },
    /// A prompt.
    Prompt {
        /// Its text.
        prompt: String,
        /// What the answer must be.
        check: Check,
    },
}

/// What an answer must be, but for white space around it.
#[derive(Debug, Clone)]
pub enum Check {
    /// This text.
    Exact(String),
    /// It contains this text.
    Contains(String),
    /// Text of this form: a regular expression that matches all of it, or JSON of a schema.
    Form(ConstraintSpec),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    name: String,
    #[serde(default)]
    text: Vec<TextEntry>,
    #[serde(default)]
    choice: Vec<ChoiceEntry>,
    #[serde(default)]
    prompts: Vec<PromptsEntry>,
    #[serde(default)]
    margins: Margins,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextEntry {
    name: String,
    file: String,
    #[serde(default = "window")]
    window: usize,
    #[serde(default = "windows")]
    windows: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChoiceEntry {
    name: String,
    file: String,
    #[serde(default = "limit")]
    limit: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptsEntry {
    name: String,
    file: String,
    #[serde(default = "limit")]
    limit: usize,
    #[serde(default = "max_tokens")]
    max_tokens: usize,
    #[serde(default = "yes")]
    chat: bool,
}

fn window() -> usize {
    512
}
fn windows() -> usize {
    16
}
fn limit() -> usize {
    1000
}
fn max_tokens() -> usize {
    128
}
fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct ChoiceLine {
    query: String,
    choices: Vec<String>,
    gold: usize,
}

#[derive(Deserialize)]
struct PromptLine {
    prompt: String,
    expected: Option<String>,
    contains: Option<String>,
    regex: Option<String>,
    schema: Option<Value>,
}

impl Suite {
    /// Reads the suite at `path`; the files it names are beside it.
    ///
    /// # Errors
    /// When a file cannot be read, or says what no suite says.
    pub fn open(path: &Path) -> Result<Self, CompressError> {
        let text = read(path)?;
        let beside = path.parent().unwrap_or(Path::new("."));
        let wrong = |path: &Path, what: &dyn std::fmt::Display| {
            CompressError::Invalid(format!("{}: {what}", path.display()))
        };
        let file: SuiteFile =
            toml::from_str(&text).map_err(|error| wrong(path, &error.to_string().trim()))?;
        let margins = file.margins;
        let limits = [margins.loss, margins.kl, margins.accuracy];
        if !limits.iter().all(|margin| *margin >= 0.0) || !(0.5..1.0).contains(&margins.confidence)
        {
            return Err(wrong(
                path,
                &"margins are 0 or more, and confidence lies between 0.5 and 1",
            ));
        }
        let mut tasks = Vec::new();
        for entry in file.text {
            if !(4..=1 << 20).contains(&entry.window) {
                return Err(wrong(path, &"a window has 4 to 1048576 tokens"));
            }
            tasks.push(Task {
                name: entry.name,
                kind: TaskKind::Text {
                    window: entry.window,
                    windows: entry.windows.max(1),
                },
                items: vec![Item::Text(read(&beside.join(&entry.file))?)],
            });
        }
        for entry in file.choice {
            let path = beside.join(&entry.file);
            let parse = |line: &str| {
                let line: ChoiceLine =
                    serde_json::from_str(line).map_err(|error| error.to_string())?;
                if line.gold >= line.choices.len() {
                    return Err("gold names no choice".to_owned());
                }
                Ok(Item::Choice {
                    query: line.query,
                    choices: line.choices,
                    gold: line.gold,
                })
            };
            tasks.push(Task {
                name: entry.name,
                kind: TaskKind::Choice,
                items: lines(&path, entry.limit, parse)?,
            });
        }
        for entry in file.prompts {
            let path = beside.join(&entry.file);
            tasks.push(Task {
                name: entry.name,
                kind: TaskKind::Prompt {
                    max_tokens: entry.max_tokens.max(1),
                    chat: entry.chat,
                },
                items: lines(&path, entry.limit, prompt)?,
            });
        }
        if tasks.iter().all(|task| task.items.is_empty()) {
            return Err(wrong(path, &"names nothing to measure"));
        }
        Ok(Suite {
            name: file.name,
            tasks,
            margins,
        })
    }
}

fn prompt(line: &str) -> Result<Item, String> {
    let line: PromptLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let check = match (line.expected, line.contains, line.regex, line.schema) {
        (Some(text), None, None, None) => Check::Exact(text),
        (None, Some(text), None, None) => Check::Contains(text),
        (None, None, Some(regex), None) => Check::Form(ConstraintSpec::Regex(regex)),
        (None, None, None, Some(schema)) => {
            Check::Form(ConstraintSpec::JsonSchema(schema.to_string()))
        }
        _ => return Err("says one of expected, contains, regex and schema".into()),
    };
    Ok(Item::Prompt {
        prompt: line.prompt,
        check,
    })
}

impl Check {
    /// Whether `answer` of `model` is what it must be.
    ///
    /// # Errors
    /// When the regular expression or the schema cannot be used.
    pub fn holds(&self, answer: &str, model: &Model) -> Result<bool, CompressError> {
        let spec = match self {
            Check::Exact(text) => return Ok(answer.trim() == text.trim()),
            Check::Contains(text) => return Ok(answer.contains(text.as_str())),
            Check::Form(spec) => spec,
        };
        let failed = |error: ConstraintError| CompressError::Invalid(error.to_string());
        let mut constraint = model
            .constraints()
            .and_then(|factory| factory.build(spec))
            .map_err(failed)?;
        let plain = EncodeOptions {
            add_special: false,
            parse_special: false,
        };
        for token in model.tokenizer().encode(answer.trim(), plain) {
            if !constraint.mask().map_err(failed)?.allows(token) {
                return Ok(false);
            }
            constraint.commit(token).map_err(failed)?;
        }
        Ok(constraint.is_complete())
    }

    /// It in words, for reports.
    pub fn describe(&self) -> String {
        match self {
            Check::Exact(text) => text.clone(),
            Check::Contains(text) => format!("contains: {text}"),
            Check::Form(ConstraintSpec::Regex(regex)) => format!("matches: {regex}"),
            Check::Form(ConstraintSpec::JsonSchema(schema)) => format!("conforms to: {schema}"),
            Check::Form(other) => format!("{other:?}"),
        }
    }
}

fn read(path: &Path) -> Result<String, CompressError> {
    let failed = |source| CompressError::Io {
        path: path.display().to_string(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES {
        return Err(CompressError::Invalid(format!(
            "{}: has {bytes} bytes, more than {FILE_BYTES}; cut it",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn lines(
    path: &Path,
    limit: usize,
    parse: impl Fn(&str) -> Result<Item, String>,
) -> Result<Vec<Item>, CompressError> {
    let text = read(path)?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let items = lines.take(limit).map(|(number, line)| {
        parse(line).map_err(|error| {
            CompressError::Invalid(format!("{}:{}: {error}", path.display(), number + 1))
        })
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ondine_runtime::Limits;

    #[test]
    fn answers_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, ondine_fixtures::Tiny::new("llama", 1).gguf()).unwrap();
        let model = Model::open(&path, &Limits::default()).unwrap();
        let holds = |line: &str, answer: &str| match prompt(line).unwrap() {
            Item::Prompt { check, .. } => check.holds(answer, &model).unwrap(),
            other => panic!("{other:?}"),
        };
        let exact = r#"{"prompt": "a", "expected": "yes"}"#;
        assert!(holds(exact, " yes\n") && !holds(exact, "yes."));
        let regex = r#"{"prompt": "a", "regex": "[0-9]+"}"#;
        assert!(holds(regex, "12") && !holds(regex, "12a") && !holds(regex, ""));
        let schema = r#"{"prompt": "a", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}"#;
        assert!(holds(schema, r#"{"x": 1}"#));
        assert!(!holds(schema, "{}") && !holds(schema, r#"{"x": 1"#) && !holds(schema, "x"));
        assert!(prompt(r#"{"prompt": "a"}"#).is_err());
    }

    #[test]
    fn a_suite_says_where_it_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("suite.toml");
        let suite = "name = \"s\"\n[[choice]]\nname = \"c\"\nfile = \"c.jsonl\"\n";
        std::fs::write(&path, suite).unwrap();
        let questions = directory.path().join("c.jsonl");
        std::fs::write(
            &questions,
            "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}\n{\"query\": 3}\n",
        )
        .unwrap();
        let error = Suite::open(&path).unwrap_err().to_string();
        assert!(error.contains("c.jsonl:2"), "{error}");
        std::fs::write(&path, format!("{suite}limit = 1\n")).unwrap();
        assert_eq!(Suite::open(&path).unwrap().tasks[0].items.len(), 1);
        std::fs::write(&path, "name = \"s\"\nunknown = 1\n").unwrap();
        assert!(Suite::open(&path).is_err());
    }
}
