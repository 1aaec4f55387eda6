//! From a conversation to the text that a model was trained on.
//!
//! Models bring a template with them, a program in the Jinja language. It runs here as the `transformers` library
//! runs it: the same whitespace rules, the same helper functions, JSON as Python writes it. Templates are outside
//! data: a budget bounds the work and memory of a rendering.

mod clock;
mod environment;
mod fallback;
mod message;
mod python_json;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use minijinja::{Environment, ErrorKind, Value};

pub use clock::DateTime;
pub use fallback::{Family, fallback_for};
pub use message::{ChatRequest, Message, ToolCall};

use environment::Raised;

/// Name of the template inside its environment.
const NAME: &str = "chat";

/// Bytes of a template's source at most.
const MAX_SOURCE: usize = 1 << 20;

/// Bytes of stack for a rendering, whatever thread asks: a list can be as deep as the budget of work allows, and is
/// dropped level by level.
const STACK: usize = 64 << 20;

/// A rendering that takes longer is given up; real ones take a hundredth of it. The engine counts instructions, but
/// one instruction on a list that contains itself many times over can take for ever: its thread is then abandoned.
const DEADLINE: Duration = Duration::from_millis(800);

/// Why a conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is no valid Jinja.
    #[error("the model's chat template cannot be read: {what}; give the prompt without a template")]
    Syntax {
        /// What is wrong, and in which line.
        what: String,
    },
    /// The template refused the conversation.
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template fails on this conversation.
    #[error("the model's chat template fails: {what}; give the prompt without a template")]
    Failed {
        /// What went wrong, and in which line.
        what: String,
    },
    /// The template does not come to an end, or makes too much text.
    #[error(
        "the model's chat template needs too much work or memory; shorten the conversation, or give the prompt without a template"
    )]
    TooExpensive,
}

/// The texts of the tokens that templates write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecialTokens {
    bos: String,
    eos: String,
}

impl SpecialTokens {
    /// The texts of the tokens that begin and end a text; empty if the model has none.
    pub fn new(bos: &str, eos: &str) -> Self {
        SpecialTokens {
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        }
    }
}

/// A template that is ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    tokens: SpecialTokens,
    fallback: Option<Family>,
}

impl ChatTemplate {
    /// The template that a model brings with it.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] when it is no valid Jinja.
    pub fn from_source(source: &str, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        Self::new(source, tokens, None)
    }

    /// The documented form of a family of models, for a model without a template.
    ///
    /// # Errors
    /// None in practice: these templates are tested.
    pub fn fallback(family: Family, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        Self::new(family.source(), tokens, Some(family))
    }

    /// The text of the conversation.
    ///
    /// Arguments of tool calls are given to the template as objects, as most expect; a template that cannot take
    /// them is given their JSON text.
    ///
    /// # Errors
    /// When the template refuses the conversation, fails on it or exceeds its budget.
    pub fn render(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        match self.render_once(request) {
            Err(error @ TemplateError::Failed { .. }) => {
                let other = request.with_arguments_as_text();
                other
                    .and_then(|other| self.render_once(&other).ok())
                    .ok_or(error)
            }
            result => result,
        }
    }

    /// Where the template comes from, for reports.
    pub fn origin(&self) -> String {
        match self.fallback {
            None => "the model's own template".to_owned(),
            Some(family) => {
                format!("no chat template in the model: the documented {family} form")
            }
        }
    }

    /// Whether the model has no template of its own.
    pub fn is_fallback(&self) -> bool {
        self.fallback.is_some()
    }

    fn new(
        source: &str,
        tokens: SpecialTokens,
        fallback: Option<Family>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Syntax {
                what: format!("it has {} bytes of at most {MAX_SOURCE}", source.len()),
            });
        }
        let mut environment = environment::environment().map_err(|error| syntax(&error))?;
        // Jinja reads every line end as a line feed.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment
            .add_template_owned(NAME, environment::without_generation_blocks(&source))
            .map_err(|error| syntax(&error))?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            tokens,
            fallback,
        })
    }

    fn render_once(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        let mut context = vec![
            ("bos_token", Value::from(self.tokens.bos.as_str())),
            ("eos_token", Value::from(self.tokens.eos.as_str())),
        ];
        let now = request.now.unwrap_or_else(DateTime::now);
        let clock = move |format: &str| {
            // Beyond any date; a longer one is made to exhaust memory.
            let end = format
                .char_indices()
                .nth(256)
                .map_or(format.len(), |(end, _)| end);
            now.format(&format[..end])
        };
        context.push(("strftime_now", Value::from_function(clock)));
        request.add_variables(&mut context);
        let context = Value::from_pairs(context);
        let environment = Arc::clone(&self.environment);
        let (sender, receiver) = mpsc::channel();
        let render = move || {
            let template = environment.get_template(NAME);
            let text = template.and_then(|template| template.render(context));
            // Nobody listens any more when the deadline has passed.
            let _ = sender.send(text.map_err(|error| failure(&error)));
        };
        let failed = |what: &str| TemplateError::Failed {
            what: what.to_owned(),
        };
        std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK)
            .spawn(render)
            .map_err(|_| failed("there is no thread to render it"))?;
        match receiver.recv_timeout(DEADLINE) {
            Ok(text) => text,
            Err(RecvTimeoutError::Timeout) => Err(TemplateError::TooExpensive),
            Err(RecvTimeoutError::Disconnected) => Err(failed("the engine gave up on it")),
        }
    }
}

fn syntax(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax {
        what: one_line(error),
    }
}

fn failure(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Refused {
                message: words(message),
            };
        }
        if let Some(error) = current.downcast_ref::<minijinja::Error>()
            && error.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooExpensive;
        }
        cause = current.source();
    }
    TemplateError::Failed {
        what: one_line(error),
    }
}

fn one_line(error: &minijinja::Error) -> String {
    let mut text = words(error.detail().unwrap_or(&error.kind().to_string()));
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line})"));
    }
    text
}

/// `text` on one line, and not without end.
fn words(text: &str) -> String {
    const MOST: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
