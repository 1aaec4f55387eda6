//! What all endpoints that generate have in common: a checked request becomes running jobs, and these become updates.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ondine_runtime::Model;
use ondine_runtime::chat_template::{ChatRequest, ChatTemplate, Message, TemplateError};
use ondine_runtime::constraint::ConstraintSpec;
use ondine_runtime::sample::{SampleError, Sampled, SamplingOptions};
use ondine_runtime::tokenizer::EncodeOptions;

use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::app::App;
use crate::checked::{self, Checked, Wanted};
use crate::cloud::{News, OnDevicePart};
use crate::engine::{Engine, Event, Outcome, Priority, Ticket};
use crate::error::{ApiError, constraint_error};
use crate::placement::Question;
use crate::receipt::Receipt;
use crate::tools::{Part, Splitter, Tool, ToolChoice, ToolStyle};

/// Answers of one request at most.
pub(crate) const MOST_CHOICES: usize = 64;

/// Tokens of a constrained answer at most where the request does not say: small models do not always find an end.
const CONSTRAINED_TOKENS: usize = 512;

/// Within the last tokens of a constrained answer, what is open is closed as soon as the grammar allows; at most a quarter of it.
const WIND_DOWN: usize = 192;

/// A checked request.
pub(crate) struct Ask {
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(crate) choices: usize,
    pub(crate) sampling: SamplingOptions,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    /// What answers must conform to, and the field that says so.
    pub(crate) constraint: Option<(&'static str, ConstraintSpec)>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    /// Whether the answer is sent while it is made.
    pub(crate) streams: bool,
    /// Fields of a request to a provider that asks for the same; none where an endpoint keeps its requests here.
    pub(crate) remote: Option<Map<String, Value>>,
    pub(crate) manner: Manner,
}

/// What to go on from.
pub(crate) enum Prompt {
    /// A conversation.
    Chat(Vec<Message>),
    /// Text as it is.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

/// How urgent it is, from the request's headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    pub(crate) priority: Priority,
    /// Class of the task, as policies name it.
    pub(crate) task: Option<String>,
    pub(crate) deadline: Option<Duration>,
}

impl Ask {
    pub(crate) fn new(model: Option<String>, prompts: Vec<Prompt>, manner: Manner) -> Self {
        Ask {
            model,
            prompts,
            choices: 1,
            sampling: SamplingOptions {
                seed: SamplingOptions::random_seed(),
                ..SamplingOptions::default()
            },
            max_tokens: None,
            stop: Vec::new(),
            constraint: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            streams: false,
            remote: None,
            manner,
        }
    }

    /// Begins. Renders, encodes and compiles, so it wants a thread that may block.
    pub(crate) fn start(self, app: &App) -> Result<Running, ApiError> {
        let begun = Instant::now();
        let (name, engine) = app.models.engine(self.model.as_deref())?;
        let model = engine.model().clone();
        let style = match self.tools.is_empty() {
            true => None,
            false => Some(ToolStyle::of(model.chat_template()?)),
        };
        let constraint = self.constraint_with(style.as_ref(), &model)?;
        let vocabulary = model.spec().vocabulary;
        let biased = self.sampling.logit_bias.iter().map(|(token, _)| *token);
        if let Some(token) = biased.max().filter(|&token| token as usize >= vocabulary) {
            return Err(SampleError::UnknownToken { token, vocabulary }.into());
        }
        let stays = self.stays();
        let remote = self.remote().filter(|_| stays.is_none());
        let mut encoded = Vec::new();
        let mut placed = None;
        for prompt in &self.prompts {
            let tokens = encode(&model, prompt, style.as_ref(), &self.tools)?;
            check_length(&tokens, engine.context_length(), vocabulary)?;
            let messages: &[Message] = match prompt {
                Prompt::Chat(messages) => messages,
                _ => &[],
            };
            let question = Question {
                messages,
                task: self.manner.task.as_deref().unwrap_or("chat"),
                prompt_tokens: tokens.len(),
                max_tokens: self.max_tokens,
                deadline: self.manner.deadline,
                needs_tools: !self.tools.is_empty(),
                waiting: engine.waiting(),
                context: engine.context_length(),
                token_ms: engine.figures().token_ms(),
                prompt_token_ms: engine.figures().prompt_token_ms(),
                remote: remote.as_ref(),
                stays,
            };
            if placed.is_none() {
                placed = Some(app.placement.place(&question)?);
            }
            encoded.push(tokens);
        }
        let placed = placed.ok_or_else(|| ApiError::invalid("prompt", "no prompt is given"))?;
        let receipt = Receipt::new(placed.decision, &name, engine.device());
        let prompt_tokens = encoded.iter().map(Vec::len).sum();
        let splitter = |_| style.as_ref().map(|style| style.splitter(&self.tools));
        if let (Some(plan), [tokens]) = (placed.plan, encoded.as_slice()) {
            let device = OnDevicePart {
                engine: engine.clone(),
                prompt: tokens.clone(),
                sampling: self.sampling.clone(),
                max_tokens: self.max_tokens,
                stop: self.stop.clone(),
                priority: self.manner.priority,
                deadline: self.manner.deadline.map(|allowed| begun + allowed),
            };
            return Ok(Running {
                open: 1,
                choices: (0..1).map(splitter).map(Choice::new).collect(),
                prompt_tokens,
                source: Source::Conducted(plan.begin(device)?, Box::new(receipt.clone())),
                engine,
                receipt,
                has_begun: false,
                updates: VecDeque::new(),
            });
        }
        let mut wanted = Vec::new();
        for tokens in &encoded {
            let max_tokens = match constraint {
                Some(_) => {
                    let room = engine.context_length() - tokens.len();
                    Some(self.max_tokens.unwrap_or(CONSTRAINED_TOKENS).min(room))
                }
                None => self.max_tokens,
            };
            for choice in 0..self.choices {
                let mut sampling = self.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(choice as u64);
                wanted.push(Wanted {
                    prompt: tokens.clone(),
                    sampling,
                    max_tokens,
                    // A short answer needs its room for what it has to say.
                    wind_down: WIND_DOWN.min(max_tokens.unwrap_or(usize::MAX) / 4),
                    stop: self.stop.clone(),
                    priority: self.manner.priority,
                    deadline: self.manner.deadline.map(|allowed| begun + allowed),
                });
            }
        }
        let count = wanted.len();
        let source = match self.checked(constraint.as_ref(), &model)? {
            Some(checked) => Source::Checked(checked::begin(&engine, checked, wanted)?),
            None => {
                let job = |wanted: &Wanted| {
                    let build = |(param, spec): &(&'static str, ConstraintSpec)| {
                        let built = model.constraints().and_then(|factory| factory.build(spec));
                        built.map_err(|error| constraint_error(param, &error))
                    };
                    wanted.job(&model, constraint.as_ref().map(build).transpose()?)
                };
                let jobs = wanted
                    .iter()
                    .map(job)
                    .collect::<Result<Vec<_>, ApiError>>()?;
                Source::Device(engine.submit(jobs)?)
            }
        };
        Ok(Running {
            open: count,
            choices: (0..count).map(splitter).map(Choice::new).collect(),
            prompt_tokens,
            source,
            engine,
            receipt,
            has_begun: false,
            updates: VecDeque::new(),
        })
    }

    /// Who judges the answers before they are given: where a schema is to be followed, unless the grammar enforces all of it and
    /// the answer is sent while it is made.
    fn checked(
        &self,
        constraint: Option<&(&'static str, ConstraintSpec)>,
        model: &Model,
    ) -> Result<Option<Checked>, ApiError> {
        match constraint {
            Some((param, ConstraintSpec::JsonSchema(schema))) if self.tools.is_empty() => {
                let factory = model.constraints();
                let factory = factory.map_err(|error| constraint_error(param, &error))?;
                let checked = Checked::new(param, schema, factory)?;
                Ok(Some(checked).filter(|checked| !self.streams || !checked.is_exact()))
            }
            _ => Ok(None),
        }
    }

    /// What about the request only the device does.
    fn stays(&self) -> Option<&'static str> {
        let is_plain = |message: &Message| {
            matches!(message.role(), "system" | "user" | "assistant")
                && message.field("tool_calls").is_none()
        };
        match self.prompts.as_slice() {
            [Prompt::Chat(messages)] if !messages.iter().all(is_plain) => {
                Some("a conversation with calls")
            }
            [Prompt::Chat(_)] if !self.tools.is_empty() => Some("a request with tools"),
            [Prompt::Chat(_)] if self.constraint.is_some() => Some("structured output"),
            [Prompt::Chat(_)] if self.choices > 1 => Some("a request for several answers"),
            [Prompt::Chat(_)] if self.sampling.top_logprobs > 0 => {
                Some("a request for probabilities")
            }
            [Prompt::Chat(_)] if !self.sampling.logit_bias.is_empty() => {
                Some("a request by token ids")
            }
            [Prompt::Chat(_)] if self.remote.is_some() => None,
            _ => Some("a request of this interface"),
        }
    }

    /// The fields that ask a provider for the same.
    fn remote(&self) -> Option<Map<String, Value>> {
        let mut fields = self.remote.clone()?;
        fields.insert("stream".into(), true.into());
        fields.insert("stream_options".into(), json!({"include_usage": true}));
        if let Some(most) = self.max_tokens {
            fields.insert("max_tokens".into(), most.into());
        }
        if !self.stop.is_empty() {
            fields.insert("stop".into(), json!(self.stop));
        }
        Some(fields)
    }

    /// The request's own constraint, or the one that its tools ask for. A call that the model is free to make is not worth an
    /// error: where its schema cannot be followed, it is read as it comes.
    fn constraint_with(
        &self,
        style: Option<&ToolStyle>,
        model: &Model,
    ) -> Result<Option<(&'static str, ConstraintSpec)>, ApiError> {
        let tools = style.and_then(|style| style.constraint(&self.tools, &self.tool_choice));
        match (tools, &self.constraint) {
            (Some(spec), None) => {
                let is_free = self.tool_choice == ToolChoice::Auto;
                if is_free
                    && model
                        .constraints()
                        .and_then(|factory| factory.build(&spec))
                        .is_err()
                {
                    return Ok(None);
                }
                Ok(Some(("tools", spec)))
            }
            (Some(spec), Some(_)) if self.tool_choice != ToolChoice::Auto => {
                Ok(Some(("tools", spec)))
            }
            (_, constraint) => Ok(constraint.clone()),
        }
    }
}

fn encode(
    model: &Model,
    prompt: &Prompt,
    style: Option<&ToolStyle>,
    tools: &[Tool],
) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Chat(messages) => {
            let template = model.chat_template()?;
            // A last message of the assistant is the beginning of the answer.
            let (messages, beginning) = match messages.as_slice() {
                [before @ .., last] if !before.is_empty() && is_beginning(last) => {
                    (before, last.content().unwrap_or_default())
                }
                all => (all, ""),
            };
            let request = match style {
                Some(style) => style.request(messages.to_vec(), tools),
                None => ChatRequest::new(messages.to_vec()),
            };
            let mut rendered = render(template, request)?;
            rendered.push_str(beginning);
            Ok(model.encode_rendered(&rendered))
        }
        Prompt::Text(text) => Ok(model.tokenizer().encode(
            text,
            EncodeOptions {
                add_special: true,
                parse_special: false,
            },
        )),
        Prompt::Tokens(tokens) => Ok(tokens.clone()),
    }
}

fn is_beginning(message: &Message) -> bool {
    message.role() == "assistant"
        && message.field("tool_calls").is_none()
        && message.content().is_some_and(|text| !text.is_empty())
}

/// Renders; where a template refuses system messages, the instruction becomes a part of what the user says first.
fn render(template: &ChatTemplate, request: ChatRequest) -> Result<String, TemplateError> {
    match template.render(&request) {
        Err(error @ TemplateError::Refused { .. }) => {
            let [first, second, rest @ ..] = request.messages.as_slice() else {
                return Err(error);
            };
            if first.role() != "system" || second.role() != "user" {
                return Err(error);
            }
            let text = |message: &Message| message.content().unwrap_or_default().to_owned();
            let joined = Message::user(format!("{}\n\n{}", text(first), text(second)));
            let mut folded = request.clone();
            folded.messages = [&[joined], rest].concat();
            template.render(&folded).map_err(|_| error)
        }
        result => result,
    }
}

pub(crate) fn check_length(
    tokens: &[u32],
    context: usize,
    vocabulary: usize,
) -> Result<(), ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::invalid(
            "prompt",
            "the prompt is empty; give at least one token",
        ));
    }
    if tokens.len() >= context {
        let message = format!(
            "the prompt has {} tokens, but the context holds {context} with the answer; shorten it",
            tokens.len()
        );
        return Err(ApiError::invalid("messages", message).with_code("context_length_exceeded"));
    }
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(token) => Err(ApiError::invalid(
            "prompt",
            format!("token {token} is not in the vocabulary of {vocabulary} tokens"),
        )),
        None => Ok(()),
    }
}

/// Answers that are being made.
pub(crate) struct Running {
    pub(crate) engine: Arc<Engine>,
    pub(crate) receipt: Receipt,
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    source: Source,
    choices: Vec<Choice>,
    open: usize,
    has_begun: bool,
    updates: VecDeque<Update>,
}

/// Where the news come from.
enum Source {
    /// The device alone.
    Device(Ticket),
    /// The device, by answers that are judged first.
    Checked(UnboundedReceiver<checked::News>),
    /// Several places may take part; with the receipt of an answer from here.
    Conducted(UnboundedReceiver<News>, Box<Receipt>),
}

struct Choice {
    splitter: Option<Splitter>,
    has_called: bool,
}

impl Choice {
    fn new(splitter: Option<Splitter>) -> Self {
        Choice {
            splitter,
            has_called: false,
        }
    }

    fn parts(&mut self, text: &str, is_last: bool) -> Vec<Part> {
        let Some(splitter) = &mut self.splitter else {
            return match text.is_empty() {
                true => Vec::new(),
                false => vec![Part::Text(text.to_owned())],
            };
        };
        let mut parts = splitter.push(text);
        if is_last {
            parts.extend(splitter.finish());
        }
        self.has_called |= parts.iter().any(|part| matches!(part, Part::Call(..)));
        parts
    }
}

/// News of one answer.
#[derive(Debug)]
pub(crate) struct Update {
    /// Which answer: all of the first prompt come before those of the second.
    pub(crate) choice: usize,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A part of it.
    Part(Part),
    /// A token was chosen; its text may come later.
    Token(Sampled),
    /// Another place goes on.
    Handover(String),
    /// It is at its end.
    Finished(Box<Finished>),
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) outcome: Outcome,
    pub(crate) has_called: bool,
    pub(crate) receipt: Receipt,
}

impl Finished {
    /// The reason as the OpenAI interface names it.
    pub(crate) fn reason(&self) -> &'static str {
        match (self.has_called, self.outcome.stopped.is_cut()) {
            (_, true) => "length",
            (true, false) => "tool_calls",
            (false, false) => "stop",
        }
    }
}

impl Running {
    /// How many answers are made.
    pub(crate) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next news; none when all answers are at their end. The first failure ends everything.
    pub(crate) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return Some(Ok(update));
            }
            if self.open == 0 {
                return None;
            }
            let taken = match &mut self.source {
                Source::Device(ticket) => match ticket.next().await {
                    Some((choice, event)) => self.take(choice, event),
                    None => Err(crate::engine::EngineError::ShuttingDown.into()),
                },
                Source::Checked(news) => match news.recv().await {
                    Some(Ok((choice, event))) => self.take(choice, event),
                    Some(Err(error)) => Err(error),
                    None => Err(crate::engine::EngineError::ShuttingDown.into()),
                },
                Source::Conducted(news, _) => match news.recv().await {
                    Some(news) => self.hear(news),
                    None => Err(ApiError::all_failed()),
                },
            };
            if let Err(error) = taken {
                self.open = 0;
                return Some(Err(error));
            }
        }
    }

    /// Takes what a conducted answer tells.
    fn hear(&mut self, news: News) -> Result<(), ApiError> {
        let mut push = |what| self.updates.push_back(Update { choice: 0, what });
        match news {
            News::From {
                place,
                model,
                region,
            } => {
                if let Source::Conducted(_, here) = &self.source {
                    self.receipt.moved(here, place.clone(), model, region);
                }
                if self.has_begun {
                    push(What::Handover(place));
                }
            }
            News::Text(text) => {
                self.has_begun = true;
                for part in self.choices[0].parts(&text, false) {
                    push(What::Part(part));
                }
            }
            News::Ended(ending) => {
                let outcome = ending.result?;
                for part in self.choices[0].parts("", true) {
                    push(What::Part(part));
                }
                self.receipt.steps = ending.steps;
                push(What::Finished(Box::new(Finished {
                    receipt: self.receipt.finished(&outcome),
                    has_called: false,
                    outcome,
                })));
                self.open -= 1;
            }
        }
        Ok(())
    }

    fn take(&mut self, choice: usize, event: Event) -> Result<(), ApiError> {
        let updates = &mut self.updates;
        let mut push = |what| updates.push_back(Update { choice, what });
        match event {
            Event::Started { .. } | Event::Embedding(_) => (),
            Event::Piece(piece) => {
                let is_end =
                    |token: u32| self.engine.model().tokenizer().is_end_of_generation(token);
                if let Some(token) = piece.token.filter(|sampled| !is_end(sampled.token)) {
                    push(What::Token(token));
                }
                for part in self.choices[choice].parts(&piece.text, false) {
                    push(What::Part(part));
                }
            }
            Event::Done(outcome) => {
                for part in self.choices[choice].parts("", true) {
                    push(What::Part(part));
                }
                push(What::Finished(Box::new(Finished {
                    receipt: self.receipt.finished(&outcome),
                    has_called: self.choices[choice].has_called,
                    outcome,
                })));
                self.open -= 1;
            }
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Names and arguments.
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) tokens: Vec<Sampled>,
    pub(crate) finished: Option<Box<Finished>>,
}

impl Running {
    /// All answers, when they are done.
    pub(crate) async fn collect(&mut self) -> Result<Vec<Answer>, ApiError> {
        let mut answers: Vec<Answer> = Vec::new();
        answers.resize_with(self.choices(), Answer::default);
        while let Some(update) = self.next().await {
            let Update { choice, what } = update?;
            let answer = &mut answers[choice];
            match what {
                What::Part(Part::Text(text)) => answer.text.push_str(&text),
                What::Part(Part::Call(name, arguments)) => answer.calls.push((name, arguments)),
                What::Token(token) => answer.tokens.push(token),
                What::Handover(_) => (),
                What::Finished(finished) => answer.finished = Some(finished),
            }
        }
        Ok(answers)
    }
}
