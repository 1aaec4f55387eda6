//! Tools: how a model writes a call, the grammar that makes it write one, and reading it back while it is written.
//!
//! Templates differ in how they show tools and calls. A probe is rendered once and tells: where the call is JSON with a name and
//! arguments, the model's own form is used. For a template that knows no tools, or writes calls in another language, the tools
//! are described in the system message and calls have the form of Hermes: `<tool_call>{"name": …, "arguments": …}</tool_call>`.

use ondine_runtime::chat_template::{ChatRequest, ChatTemplate, Message, ToolCall};
use ondine_runtime::constraint::{ConstraintSpec, bound_recursion};
use serde_json::{Value, json};

use crate::error::ApiError;

/// Tools of one request at most.
const MOST_TOOLS: usize = 128;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    parameters: Value,
    /// As templates see it.
    json: Value,
}

/// Whether the model must call a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ToolChoice {
    /// It may not.
    None,
    /// It decides.
    #[default]
    Auto,
    /// It must call one.
    Required,
    /// It must call this one.
    Named(String),
}

impl Tool {
    /// The tools of a request: `{"type": "function", "function": {"name", "description", "parameters"}}`, or without the inner
    /// object as `/v1/responses` has it.
    pub(crate) fn list(tools: &[Value]) -> Result<Vec<Self>, ApiError> {
        let invalid = |what: String| ApiError::invalid("tools", what);
        if tools.len() > MOST_TOOLS {
            return Err(invalid(format!(
                "{} tools are given; at most {MOST_TOOLS} are allowed",
                tools.len()
            )));
        }
        let read = |(index, tool): (usize, &Value)| {
            if tool["type"].as_str().is_some_and(|kind| kind != "function") {
                return Err(invalid(format!(
                    "tool {index} is a {}; only functions are supported",
                    tool["type"]
                )));
            }
            let function = if tool["function"].is_object() {
                &tool["function"]
            } else {
                tool
            };
            let name = function["name"].as_str().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| invalid(format!("tool {index} has no name")))?;
            let parameters = match &function["parameters"] {
                Value::Null => json!({"type": "object", "properties": {}}),
                parameters => parameters.clone(),
            };
            let description = function["description"].as_str().unwrap_or_default();
            Ok(Tool {
                name: name.to_owned(),
                json: json!({"type": "function", "function": {
                    "name": name, "description": description, "parameters": parameters,
                }}),
                parameters,
            })
        };
        tools.iter().enumerate().map(read).collect()
    }
}

impl ToolChoice {
    /// `"none"`, `"auto"`, `"required"`, or an object that names a function.
    pub(crate) fn read(choice: Option<&Value>, tools: &[Tool]) -> Result<Self, ApiError> {
        let invalid = |what: String| ApiError::invalid("tool_choice", what);
        let choice = match choice {
            None | Some(Value::Null) => ToolChoice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => ToolChoice::None,
                "auto" => ToolChoice::Auto,
                "required" => ToolChoice::Required,
                other => {
                    return Err(invalid(format!(
                        "{other:?} is not one of none, auto and required"
                    )));
                }
            },
            Some(object) => {
                let name = object["function"]["name"]
                    .as_str()
                    .or(object["name"].as_str());
                let name = name.ok_or_else(|| invalid("it names no function".into()))?;
                if !tools.iter().any(|tool| tool.name == name) {
                    return Err(invalid(format!("{name:?} is not among the tools")));
                }
                ToolChoice::Named(name.to_owned())
            }
        };
        if tools.is_empty() && choice == ToolChoice::Required {
            return Err(invalid("a tool is required, but none is given".into()));
        }
        Ok(choice)
    }
}

/// How a model writes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolStyle {
    open: String,
    close: String,
    /// The key of the arguments.
    arguments: &'static str,
    /// Whether the template shows the tools.
    is_native: bool,
}

const PROBE: &str = "ondine_probe";

impl ToolStyle {
    /// What the template does with a probe.
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        let tool = json!({"type": "function", "function": {"name": PROBE, "description": PROBE,
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}});
        let call = ToolCall {
            id: Some("call00000".into()),
            ..ToolCall::new(PROBE, json!({"x": "y"}))
        };
        let messages = vec![
            Message::user("hello"),
            Message::assistant("").with_tool_calls(&[call]),
        ];
        let request = ChatRequest::new(messages)
            .with_tools(vec![tool])
            .with_generation_prompt(false);
        let rendered = template.render(&request).unwrap_or_default();
        Self::read(&rendered).unwrap_or_else(|| ToolStyle {
            open: "<tool_call>\n".into(),
            close: "\n</tool_call>".into(),
            arguments: "arguments",
            is_native: false,
        })
    }

    fn read(rendered: &str) -> Option<Self> {
        // The tools come first, the call last; a template that shows no tools shows the name once.
        let last = rendered.rfind(PROBE)?;
        if rendered.find(PROBE) == Some(last) {
            return None;
        }
        let start = rendered[..last].rfind('{')?;
        let mut values =
            serde_json::Deserializer::from_str(&rendered[start..]).into_iter::<Value>();
        let call = values.next()?.ok()?;
        let after = &rendered[start + values.byte_offset()..];
        if call["name"] != PROBE {
            return None;
        }
        let arguments = ["arguments", "parameters"]
            .into_iter()
            .find(|key| call[*key].is_object())?;
        let before = &rendered[..start];
        let (open, close) = if before.trim_end().ends_with("<tool_call>") {
            let space = &before[before.trim_end().len()..];
            let end = after.find("</tool_call>")? + "</tool_call>".len();
            (format!("<tool_call>{space}"), after[..end].to_owned())
        } else if let Some(at) = before.rfind("[TOOL_CALLS]") {
            (before[at..].to_owned(), "]".to_owned())
        } else {
            (String::new(), String::new())
        };
        Some(ToolStyle {
            open,
            close,
            arguments,
            is_native: true,
        })
    }

    /// The conversation as the template can show it.
    pub(crate) fn request(&self, messages: Vec<Message>, tools: &[Tool]) -> ChatRequest {
        let shown: Vec<Value> = tools.iter().map(|tool| tool.json.clone()).collect();
        if self.is_native {
            return ChatRequest::new(messages).with_tools(shown);
        }
        let mut plain: Vec<Message> = messages
            .into_iter()
            .map(|message| self.plain(message))
            .collect();
        if !shown.is_empty() {
            let lines: Vec<String> = shown.iter().map(Value::to_string).collect();
            let instruction = format!(
                "You may call these functions:\n{}\n\nTo call one, answer only with\n{}{{\"name\": NAME, \"{}\": OBJECT}}{}",
                lines.join("\n"),
                self.open,
                self.arguments,
                self.close
            );
            match plain.first_mut() {
                Some(first) if first.role() == "system" => {
                    *first = Message::system(format!(
                        "{}\n\n{instruction}",
                        first.content().unwrap_or_default()
                    ));
                }
                _ => plain.insert(0, Message::system(instruction)),
            }
        }
        ChatRequest::new(plain)
    }

    /// A message without calls and results, which the template does not know.
    fn plain(&self, message: Message) -> Message {
        let content = message.content().unwrap_or_default();
        if message.role() == "tool" {
            return Message::user(format!("<tool_response>\n{content}\n</tool_response>"));
        }
        let Some(calls) = message.field("tool_calls").and_then(Value::as_array) else {
            return message;
        };
        let mut text = content.to_owned();
        for call in calls {
            let function = &call["function"];
            let call = json!({"name": function["name"], self.arguments: function["arguments"]});
            text.push_str(&format!("{}{call}{}", self.open, self.close));
        }
        Message::assistant(text)
    }

    /// What the answer must conform to.
    pub(crate) fn constraint(&self, tools: &[Tool], choice: &ToolChoice) -> Option<ConstraintSpec> {
        let allowed: Vec<&Tool> = match choice {
            ToolChoice::None => return None,
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
            ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
        };
        if allowed.is_empty() {
            return None;
        }
        let mut call = json!({"anyOf": allowed.iter().enumerate().map(|(index, tool)| {
            let mut parameters = tool.parameters.clone();
            rebase(&mut parameters, &format!("#/anyOf/{index}/properties/{}/", self.arguments));
            json!({"type": "object", "properties": {"name": {"const": tool.name}, self.arguments: parameters},
                "required": ["name", self.arguments], "additionalProperties": false})
        }).collect::<Vec<_>>(),
            // As Python writes it, which models have seen most; free space is where small ones get lost.
            "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}});
        bound_recursion(&mut call);
        let (open, close) = (json!(self.open), json!(self.close));
        let written = match (self.open.is_empty(), self.close.is_empty()) {
            (true, _) => "call".to_owned(),
            (false, true) => format!("{open} call"),
            (false, false) => format!("{open} call {close}"),
        };
        match choice {
            ToolChoice::Auto => {
                // An answer that begins like a call is one; where a call begins like any text, nothing can be said.
                let first = self
                    .open
                    .chars()
                    .next()
                    .filter(|c| matches!(c, '<' | '['))?;
                Some(ConstraintSpec::Lark(format!(
                    "start: FREE | {written}\nFREE: /[^\\{first}](.|\\n)*/\ncall: %json {call}\n"
                )))
            }
            _ => Some(ConstraintSpec::Lark(format!(
                "start: {written}\ncall: %json {call}\n"
            ))),
        }
    }

    /// Reads answers while they are written.
    pub(crate) fn splitter(&self, tools: &[Tool]) -> Splitter {
        Splitter {
            style: self.clone(),
            names: tools.iter().map(|tool| tool.name.clone()).collect(),
            held: String::new(),
            has_text: false,
        }
    }
}

/// References into a schema that has become a part of another one.
fn rebase(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(inner) = target.strip_prefix("#/") {
                            *target = format!("{place}{inner}");
                        }
                    }
                    other => rebase(other, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, place)),
        _ => (),
    }
}

/// What an answer consists of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Text for people.
    Text(String),
    /// A call: name, and arguments as JSON text.
    Call(String, String),
}

/// Separates calls from text, while the answer is written.
#[derive(Debug)]
pub(crate) struct Splitter {
    style: ToolStyle,
    names: Vec<String>,
    held: String,
    has_text: bool,
}

impl Splitter {
    /// Takes a piece and answers what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        if self.names.is_empty() {
            return parts_of(text.to_owned());
        }
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.take(&mut parts) {}
        parts
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        let inner = rest
            .trim()
            .strip_prefix(self.style.open.trim())
            .unwrap_or(rest.trim());
        match self.call(inner) {
            Some(call) => vec![call],
            None => parts_of(rest),
        }
    }

    /// Moves what is certain from the front of `held`; false when nothing is.
    fn take(&mut self, parts: &mut Vec<Part>) -> bool {
        let marker = self.style.open.trim().to_owned();
        if marker.is_empty() {
            // A call without a marker is the whole answer.
            let start = self.held.trim_start();
            if self.has_text || !(start.is_empty() || start.starts_with('{')) {
                self.has_text = true;
                let text = std::mem::take(&mut self.held);
                parts.extend(parts_of(text));
            }
            return false;
        }
        if let Some(at) = self.held.find(&marker) {
            let close = self.style.close.trim();
            let inner = at + marker.len();
            let Some(end) = self.held[inner..].find(close) else {
                return false;
            };
            let before = self.held[..at].to_owned();
            let whole = self.held[at..inner + end + close.len()].to_owned();
            let call = self.call(&self.held[inner..inner + end]);
            self.held.drain(..inner + end + close.len());
            if !before.trim().is_empty() {
                parts.extend(parts_of(before));
            }
            parts.push(call.unwrap_or(Part::Text(whole)));
            return true;
        }
        // The end may be the beginning of a marker, and space before one is not text.
        let mut keep = (1..=marker.len().min(self.held.len()))
            .rev()
            .find(|&length| self.held.ends_with(&marker[..length]))
            .unwrap_or(0);
        let certain = &self.held[..self.held.len() - keep];
        keep += certain.len() - certain.trim_end().len();
        let text: String = self.held.drain(..self.held.len() - keep).collect();
        parts.extend(parts_of(text));
        false
    }

    /// The call that `text` is, if it is one of a known tool.
    fn call(&self, text: &str) -> Option<Part> {
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let name = value["name"].as_str()?;
        let arguments = match &value[self.style.arguments] {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        let is_known = self.names.iter().any(|known| known == name);
        is_known.then(|| Part::Call(name.to_owned(), arguments))
    }
}

fn parts_of(text: String) -> Vec<Part> {
    match text.is_empty() {
        true => Vec::new(),
        false => vec![Part::Text(text)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(open: &str, close: &str) -> ToolStyle {
        ToolStyle {
            open: open.into(),
            close: close.into(),
            arguments: "arguments",
            is_native: false,
        }
    }

    fn tools() -> Vec<Tool> {
        Tool::list(&[json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}})]).unwrap()
    }

    /// The parts, neighbouring texts joined, however the answer is cut.
    fn split(style: &ToolStyle, answer: &str, cut: usize) -> Vec<Part> {
        let mut splitter = style.splitter(&tools());
        let mut parts: Vec<Part> = Vec::new();
        let characters: Vec<char> = answer.chars().collect();
        let mut pieces: Vec<Vec<Part>> = characters
            .chunks(cut)
            .map(|piece| splitter.push(&piece.iter().collect::<String>()))
            .collect();
        pieces.push(splitter.finish());
        for part in pieces.into_iter().flatten() {
            match (parts.last_mut(), part) {
                (Some(Part::Text(text)), Part::Text(more)) => text.push_str(&more),
                (_, part) => parts.push(part),
            }
        }
        parts
    }

    #[test]
    fn calls_are_found_however_the_answer_is_cut() {
        let call = Part::Call("add".into(), r#"{"a":1}"#.into());
        let text = |text: &str| Part::Text(text.into());
        let hermes = style("<tool_call>\n", "\n</tool_call>");
        let bare = style("", "");
        let written = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        for cut in 1..12 {
            assert_eq!(split(&hermes, written, cut), std::slice::from_ref(&call));
            assert_eq!(
                split(&hermes, &format!("So: {written}\n{written}"), cut),
                [text("So:"), call.clone(), call.clone()]
            );
            assert_eq!(split(&hermes, "1 < 2 <tool_", cut), [text("1 < 2 <tool_")]);
            assert_eq!(
                split(&hermes, written.trim_end_matches("\n</tool_call>"), cut),
                std::slice::from_ref(&call)
            );
            let unknown = "<tool_call>{\"name\": \"sub\"}</tool_call>";
            assert_eq!(split(&hermes, unknown, cut), [text(unknown)]);
            assert_eq!(
                split(&bare, r#" {"name": "add", "arguments": {"a": 1}}"#, cut),
                std::slice::from_ref(&call)
            );
            assert_eq!(
                split(&bare, r#"{"name": "no"}"#, cut),
                [text(r#"{"name": "no"}"#)]
            );
            assert_eq!(split(&bare, "plain {text}", cut), [text("plain {text}")]);
        }
    }

    #[test]
    fn references_of_tool_schemas_keep_their_targets() {
        let mut schema =
            json!({"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}});
        rebase(&mut schema, "#/anyOf/3/");
        assert_eq!(schema["properties"]["x"]["$ref"], "#/anyOf/3/$defs/a");
    }
}
