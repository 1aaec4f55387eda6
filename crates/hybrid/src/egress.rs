//! The only way out.
//!
//! A [`CloudRequest`] exists only where a [`Gate`] has scanned a conversation and the policy lets it go: its fields are private
//! and nothing else builds one.
//!
//! ```compile_fail
//! use ondine_hybrid::egress::CloudRequest;
//! // error: the fields are private, and there is no constructor.
//! let request = CloudRequest { body: b"my secret".to_vec() };
//! ```
//!
//! A [`Transport`] gets its bytes as [`Cleared`], which only [`Egress`] makes, after it has scanned the serialised request once
//! more: history, system prompt, tool results and the prefix that the device has already written are all in there.
//!
//! ```compile_fail
//! use ondine_hybrid::egress::Cleared;
//! let bytes = Cleared::new(b"my secret"); // error: the constructor is private
//! ```
//!
//! ```compile_fail
//! use ondine_hybrid::egress::{Cleared, Transport};
//! fn leak(transport: &mut dyn Transport) {
//!     // error: a transport takes no plain bytes
//!     let _ = transport.send(b"my secret");
//! }
//! ```
//!
//! Retries, hedges, fallbacks and handovers start from the [`Label`] of the first attempt, never from a fresh one; a label only
//! grows stricter.

use crate::RestoreMap;
use crate::pii::{
    DataClass, Dictionary, Entity, Finding, ScanError, ScanOptions, Scanner, StreamScanner,
};
use crate::policy::{Policy, Provider, Rule};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use thiserror::Error;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What a request is about, before anything is decided.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// What the device has already answered, if the cloud is to go on from there.
    pub local_prefix: Option<String>,
    /// Further fields of the request (tools, response format): JSON that is scanned like everything else.
    pub extra: serde_json::Map<String, Value>,
}

/// How private a request is. It passes to every further attempt and only ever grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Label {
    /// Classes of data that were found.
    pub classes: BTreeSet<DataClass>,
    /// True if it must stay on the device.
    pub local_only: bool,
}

impl Label {
    /// True if nothing private was found, so that the request may be sent twice at once.
    pub fn is_public(&self) -> bool {
        self.classes.is_empty() && !self.local_only
    }
}

/// Why a request stays on the device.
#[derive(Debug, Clone, Error, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "detail")]
pub enum Kept {
    /// A rule says so.
    #[error("the policy keeps {} on the device", classes(.0))]
    Rule(BTreeSet<DataClass>),
    /// An earlier attempt found that it must stay.
    #[error("an earlier attempt was kept on the device")]
    Label,
    /// The policy is offline, or knows no such provider.
    #[error("the policy does not allow the provider {0}")]
    Provider(String),
    /// The scanner could not finish.
    #[error("the scan failed ({0})")]
    Scan(String),
    /// What is written so far ends within a text that stands behind a placeholder.
    #[error("the answer so far ends within personal data")]
    Partial,
    /// The serialised request still held something that may not leave.
    #[error("the serialised request still held {}", classes(.0))]
    Rescan(BTreeSet<DataClass>),
}

fn classes(classes: &BTreeSet<DataClass>) -> String {
    let names: Vec<String> = classes
        .iter()
        .map(|class| json!(class).as_str().unwrap_or_default().to_string())
        .collect();
    names.join(", ")
}

impl From<ScanError> for Kept {
    fn from(error: ScanError) -> Self {
        Self::Scan(error.to_string())
    }
}

/// Decides what leaves, by policy and scanner.
#[derive(Clone)]
pub struct Gate {
    policy: Policy,
    scanner: Scanner,
}

impl Gate {
    /// Most bytes of one conversation.
    pub const MAX_BYTES: usize = 64 << 20;

    /// A gate for a policy.
    ///
    /// # Errors
    /// [`ScanError`] when a dictionary of the policy cannot be used.
    pub fn new(policy: Policy) -> Result<Self, ScanError> {
        let options = ScanOptions {
            min_confidence: policy.scanner.min_confidence,
            ..ScanOptions::default()
        };
        let mut scanner = Scanner::new(options)?;
        for (kind, words) in &policy.scanner.dictionaries {
            scanner = scanner.with_dictionary(Dictionary::new(Entity::named(kind), words)?);
        }
        Ok(Self { policy, scanner })
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the conversation holds, whoever may see it. A scan that fails labels it local.
    pub fn label(&self, conversation: &Conversation) -> Label {
        let mut label = Label::default();
        for text in conversation.texts() {
            match self.scan(&text) {
                Ok(findings) => label
                    .classes
                    .extend(findings.iter().map(|finding| finding.entity.class())),
                Err(_) => label.local_only = true,
            }
        }
        label.local_only |= label
            .classes
            .iter()
            .any(|class| self.policy.rule(*class) == Rule::LocalOnly);
        label
    }

    /// Lets a conversation go to a provider, with placeholders where the policy wants them.
    ///
    /// # Errors
    /// [`Kept`] says why it stays; then the device answers.
    pub fn admit(&self, conversation: &Conversation, provider: &str) -> Result<CloudRequest, Kept> {
        self.admit_labelled(conversation, provider, Label::default())
    }

    /// Another attempt of a request, perhaps at another provider or with more of the answer written: the label goes along.
    ///
    /// # Errors
    /// As [`Gate::admit`]; also where the earlier attempt was kept.
    pub fn readmit(
        &self,
        earlier: &Label,
        conversation: &Conversation,
        provider: &str,
    ) -> Result<CloudRequest, Kept> {
        if earlier.local_only {
            return Err(Kept::Label);
        }
        self.admit_labelled(conversation, provider, earlier.clone())
    }

    fn admit_labelled(
        &self,
        conversation: &Conversation,
        provider: &str,
        mut label: Label,
    ) -> Result<CloudRequest, Kept> {
        let allowed = self
            .policy
            .providers()
            .iter()
            .find(|known| known.name == provider && !self.policy.offline.always);
        let Some(provider) = allowed else {
            return Err(Kept::Provider(provider.to_string()));
        };
        let mut private = BTreeSet::new();
        let mut restore = RestoreMap::default();
        let mut replace = |text: &str| -> Result<String, Kept> {
            let mut findings = self.scan(text)?;
            let found = findings.iter().map(|finding| finding.entity.class());
            label.classes.extend(found.clone());
            private.extend(
                found.filter(|class| self.policy.rule_at(*class, provider) == Rule::LocalOnly),
            );
            findings.retain(|finding| {
                self.policy.rule_at(finding.entity.class(), provider) != Rule::Allow
            });
            Ok(restore.redact(text, &findings))
        };
        let mut messages = Vec::new();
        for message in &conversation.messages {
            messages.push(
                json!({"role": replace(&message.role)?, "content": replace(&message.content)?}),
            );
        }
        if let Some(prefix) = &conversation.local_prefix {
            messages.push(json!({"role": "assistant", "content": replace(prefix)?}));
        }
        let mut body = serde_json::Map::new();
        body.insert("model".into(), json!(provider.model));
        body.insert("messages".into(), json!(messages));
        for (key, value) in &conversation.extra {
            body.insert(replace(key)?, replaced(value, &mut replace)?);
        }
        if !private.is_empty() {
            return Err(Kept::Rule(private));
        }
        let prefix = conversation.local_prefix.as_deref().unwrap_or_default();
        if restore.ends_within(prefix) {
            return Err(Kept::Partial);
        }
        let mut body = Value::Object(body);
        if !restore.is_empty() {
            replace_known(&mut body, &restore);
        }
        let body = body.to_string();
        Ok(CloudRequest {
            body,
            provider: provider.clone(),
            label,
            restore,
        })
    }

    /// The findings that count, or an error if the time is over.
    fn scan(&self, text: &str) -> Result<Vec<Finding>, ScanError> {
        if text.len() > Self::MAX_BYTES {
            return Err(ScanError::TooLong(text.len()));
        }
        let limit = Duration::from_millis(self.policy.scanner.timeout_ms);
        let begin = Instant::now();
        let mut stream = StreamScanner::new(self.scanner.clone());
        let mut findings = Vec::new();
        let mut rest = text;
        // A scan is linear, so it is enough to look at the clock between pieces.
        while !rest.is_empty() {
            let cut = (16_384.min(rest.len())..=rest.len())
                .find(|at| rest.is_char_boundary(*at))
                .unwrap_or(rest.len());
            findings.extend(stream.push(&rest[..cut]));
            rest = &rest[cut..];
            if begin.elapsed() > limit {
                return Err(ScanError::Timeout(self.policy.scanner.timeout_ms));
            }
        }
        findings.extend(stream.finish());
        if begin.elapsed() > limit {
            return Err(ScanError::Timeout(self.policy.scanner.timeout_ms));
        }
        Ok(findings)
    }
}

impl Conversation {
    /// Every text that would be sent.
    fn texts(&self) -> Vec<String> {
        let messages = self
            .messages
            .iter()
            .flat_map(|m| [m.role.clone(), m.content.clone()]);
        let extra = (!self.extra.is_empty()).then(|| Value::Object(self.extra.clone()).to_string());
        messages
            .chain(self.local_prefix.clone())
            .chain(extra)
            .collect()
    }
}

/// `value` with every text in it replaced, keys too.
fn replaced(
    value: &Value,
    replace: &mut dyn FnMut(&str) -> Result<String, Kept>,
) -> Result<Value, Kept> {
    Ok(match value {
        Value::String(text) => Value::String(replace(text)?),
        Value::Array(items) => {
            let items: Result<Vec<Value>, Kept> =
                items.iter().map(|item| replaced(item, replace)).collect();
            Value::Array(items?)
        }
        Value::Object(map) => {
            let mut out = serde_json::Map::new();
            for (key, item) in map {
                out.insert(replace(key)?, replaced(item, replace)?);
            }
            Value::Object(out)
        }
        // A number can be a card: it is looked at as text, and stays a number if there is nothing in it.
        Value::Number(number) => {
            let text = number.to_string();
            let clean = replace(&text)?;
            if clean == text {
                value.clone()
            } else {
                Value::String(clean)
            }
        }
        Value::Null | Value::Bool(_) => value.clone(),
    })
}

/// Replaces what is known to be private wherever else it stands: a number that only the words around it gave away stands there
/// without them.
fn replace_known(value: &mut Value, restore: &RestoreMap) {
    match value {
        Value::String(text) => restore.replace_known(text),
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| replace_known(item, restore)),
        Value::Object(map) => map
            .values_mut()
            .for_each(|item| replace_known(item, restore)),
        Value::Null | Value::Bool(_) | Value::Number(_) => (),
    }
}

/// A request that the policy lets go. Only [`Gate`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct CloudRequest {
    body: String,
    provider: Provider,
    label: Label,
    restore: RestoreMap,
}

impl CloudRequest {
    /// Where it goes.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// The label that every further attempt inherits.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// What the placeholders stand for, to restore the answer with.
    pub fn restore_map(&self) -> &RestoreMap {
        &self.restore
    }
}

/// Bytes that have passed the last scan. Only [`Egress`] makes them.
#[derive(Debug)]
pub struct Cleared<'a> {
    bytes: &'a [u8],
    provider: &'a Provider,
}

impl Cleared<'_> {
    /// The serialised request.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Where it goes.
    pub fn provider(&self) -> &Provider {
        self.provider
    }
}

/// Something that carries cleared bytes to a provider.
pub trait Transport {
    /// What comes back.
    type Answer;

    /// Sends the bytes.
    fn send(&mut self, request: Cleared<'_>) -> Self::Answer;
}

/// The one place where bytes leave: scans what is serialised, then hands it to the transport.
pub struct Egress<T> {
    gate: Gate,
    transport: T,
}

impl<T: Transport> Egress<T> {
    /// An exit through `transport`, guarded by `gate`.
    pub fn new(gate: Gate, transport: T) -> Self {
        Self { gate, transport }
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The transport, for its records.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Sends a request if the bytes hold nothing that may not leave.
    ///
    /// # Errors
    /// [`Kept`] if the last scan finds something or fails; nothing was sent.
    pub fn send(&mut self, request: &CloudRequest) -> Result<T::Answer, Kept> {
        self.gate.send(request, &mut self.transport)
    }
}

impl Gate {
    /// Sends a request through `transport` if the bytes hold nothing that may not leave.
    ///
    /// # Errors
    /// [`Kept`] if the last scan finds something or fails; nothing was sent.
    pub fn send<T: Transport>(
        &self,
        request: &CloudRequest,
        transport: &mut T,
    ) -> Result<T::Answer, Kept> {
        let findings = self.scan(&request.body)?;
        let held: BTreeSet<DataClass> = findings
            .iter()
            .map(|finding| finding.entity.class())
            .filter(|class| self.policy.rule_at(*class, &request.provider) != Rule::Allow)
            .collect();
        if !held.is_empty() {
            return Err(Kept::Rescan(held));
        }
        let cleared = Cleared {
            bytes: request.body.as_bytes(),
            provider: &request.provider,
        };
        Ok(transport.send(cleared))
    }
}
