//! A conversation, as templates see it.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::DateTime;
use super::python_json::{Layout, dumps, to_template};

/// A call of a tool that the model asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Identifies the call, where the caller or the model numbers them.
    pub id: Option<String>,
    /// Name of the tool.
    pub name: String,
    /// Arguments: an object, as a rule.
    pub arguments: Json,
}

impl ToolCall {
    /// A call without an id.
    pub fn new(name: impl Into<String>, arguments: Json) -> Self {
        ToolCall {
            id: None,
            name: name.into(),
            arguments,
        }
    }

    fn to_json(&self) -> Json {
        let mut call = Map::new();
        if let Some(id) = &self.id {
            call.insert("id".into(), id.as_str().into());
        }
        call.insert("type".into(), "function".into());
        let function = [
            ("name".to_owned(), Json::from(self.name.as_str())),
            ("arguments".to_owned(), self.arguments.clone()),
        ];
        call.insert(
            "function".into(),
            Json::Object(function.into_iter().collect()),
        );
        call.into()
    }
}

/// A message: a role, a content and whatever else a template reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    fields: Map<String, Json>,
}

impl Message {
    /// An instruction for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Message::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Message::new("user", content)
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message::new("assistant", content)
    }

    /// The result of a tool.
    pub fn tool(content: impl Into<String>) -> Self {
        Message::new("tool", content)
    }

    /// A message of any role.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        let fields = [
            ("role".to_owned(), Json::from(role)),
            ("content".to_owned(), Json::from(content.into())),
        ];
        Message {
            fields: fields.into_iter().collect(),
        }
    }

    /// A message in the form of the OpenAI interface; none if it has no role.
    ///
    /// The arguments of tool calls, which that form writes as JSON text, become objects.
    pub fn from_json(message: Json) -> Option<Self> {
        let Json::Object(mut fields) = message else {
            return None;
        };
        fields.get("role")?.as_str()?;
        for arguments in arguments_of(&mut fields) {
            if let Json::String(text) = arguments
                && let Ok(object @ Json::Object(_)) = serde_json::from_str(text)
            {
                *arguments = object;
            }
        }
        Some(Message { fields })
    }

    /// The same with tool calls.
    pub fn with_tool_calls(self, calls: &[ToolCall]) -> Self {
        let calls: Vec<Json> = calls.iter().map(ToolCall::to_json).collect();
        self.with("tool_calls", calls.into())
    }

    /// The same with another field (`name`, `tool_call_id`, `reasoning_content`, ...).
    pub fn with(mut self, field: &str, value: Json) -> Self {
        self.fields.insert(field.to_owned(), value);
        self
    }

    /// Another field (`tool_calls`, `name`, ...), if it is there.
    pub fn field(&self, name: &str) -> Option<&Json> {
        self.fields.get(name)
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Json::as_str).unwrap_or("")
    }

    /// The text, if the content is text.
    pub fn content(&self) -> Option<&str> {
        self.fields.get("content").and_then(Json::as_str)
    }
}

fn arguments_of(fields: &mut Map<String, Json>) -> impl Iterator<Item = &mut Json> {
    let calls = fields.get_mut("tool_calls").and_then(Json::as_array_mut);
    let calls = calls.into_iter().flatten();
    calls.filter_map(|call| call.get_mut("function")?.get_mut("arguments"))
}

/// What a template renders.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// Descriptions of the tools that the model may call, in the form of the OpenAI interface.
    pub tools: Vec<Json>,
    /// Documents that the model may quote.
    pub documents: Vec<Json>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Other variables of the template (`enable_thinking`, ...).
    pub variables: Map<String, Json>,
    /// The time that templates which write a date see; the system's clock unless given.
    pub now: Option<DateTime>,
}

impl ChatRequest {
    /// A request to answer `messages`.
    pub fn new(messages: Vec<Message>) -> Self {
        ChatRequest {
            messages,
            tools: Vec::new(),
            documents: Vec::new(),
            add_generation_prompt: true,
            variables: Map::new(),
            now: None,
        }
    }

    /// The same with tools.
    pub fn with_tools(mut self, tools: Vec<Json>) -> Self {
        self.tools = tools;
        self
    }

    /// The same with documents.
    pub fn with_documents(mut self, documents: Vec<Json>) -> Self {
        self.documents = documents;
        self
    }

    /// The same with or without the beginning of an answer.
    pub fn with_generation_prompt(mut self, add: bool) -> Self {
        self.add_generation_prompt = add;
        self
    }

    /// The same with another variable.
    pub fn with_variable(mut self, name: &str, value: Json) -> Self {
        self.variables.insert(name.to_owned(), value);
        self
    }

    /// The same at another time.
    pub fn at(mut self, now: DateTime) -> Self {
        self.now = Some(now);
        self
    }

    /// Adds the variables that the template reads. The request's own come last and win.
    pub(super) fn add_variables<'a>(&'a self, context: &mut Vec<(&'a str, Value)>) {
        let messages = self.messages.iter();
        let messages: Value = messages
            .map(|message| {
                let fields = message.fields.iter();
                Value::from_pairs(fields.map(|(name, value)| (name.as_str(), to_template(value))))
            })
            .collect();
        context.push(("messages", messages));
        let list = |items: &[Json]| match items {
            [] => Value::from(()),
            _ => items.iter().map(to_template).collect(),
        };
        context.push(("tools", list(&self.tools)));
        context.push(("documents", list(&self.documents)));
        context.push(("add_generation_prompt", self.add_generation_prompt.into()));
        for (name, value) in &self.variables {
            context.push((name, to_template(value)));
        }
    }

    /// The same with the arguments of tool calls as JSON text; none if there are none to change.
    pub(super) fn with_arguments_as_text(&self) -> Option<Self> {
        let mut changed = false;
        let mut request = self.clone();
        for message in &mut request.messages {
            for arguments in arguments_of(&mut message.fields) {
                if !arguments.is_string() {
                    let text = dumps(&to_template(arguments), &Layout::default(), None);
                    *arguments = text.ok()?.into();
                    changed = true;
                }
            }
        }
        changed.then_some(request)
    }
}
