//! The events of a streamed response.

use serde_json::{Value, json};

use super::fresh_id;
use super::responses::{Form, function_call, message, output_text};
use crate::ask::{Running, Update, What};
use crate::error::ApiError;
use crate::http::Writer;
use crate::tools::Part;

/// Writes events; each item of the output is opened, filled and closed before the next one.
pub(super) struct Events {
    form: Form,
    number: u64,
    output: Vec<Value>,
    /// Id and text of the message that is being written.
    open: Option<(String, String)>,
}

impl Events {
    pub(super) fn new(form: Form) -> Self {
        Events {
            form,
            number: 0,
            output: Vec::new(),
            open: None,
        }
    }

    fn event(&mut self, kind: &str, fields: Value) -> String {
        let mut event = json!({"type": kind, "sequence_number": self.number});
        self.number += 1;
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        format!("event: {kind}\ndata: {event}\n\n")
    }

    fn text(&mut self, text: &str) -> String {
        let index = self.output.len();
        let mut out = String::new();
        if self.open.is_none() {
            let id = fresh_id("msg_");
            let item = message(&id, "in_progress", None);
            out.push_str(&self.event(
                "response.output_item.added",
                json!({"output_index": index, "item": item}),
            ));
            let fields = json!({"item_id": id, "output_index": index, "content_index": 0, "part": output_text("")});
            out.push_str(&self.event("response.content_part.added", fields));
            self.open = Some((id, String::new()));
        }
        let Some((id, written)) = &mut self.open else {
            return out;
        };
        written.push_str(text);
        let fields = json!({"item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": []});
        out.push_str(&self.event("response.output_text.delta", fields));
        out
    }

    /// Closes the message that is being written, if there is one.
    fn close(&mut self) -> String {
        let Some((id, text)) = self.open.take() else {
            return String::new();
        };
        let index = self.output.len();
        let place = || json!({"item_id": id, "output_index": index, "content_index": 0});
        let mut fields = place();
        fields["text"] = text.as_str().into();
        fields["logprobs"] = json!([]);
        let mut out = self.event("response.output_text.done", fields);
        let mut fields = place();
        fields["part"] = output_text(&text);
        out.push_str(&self.event("response.content_part.done", fields));
        let item = message(&id, "completed", Some(&text));
        out.push_str(&self.event(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        ));
        self.output.push(item);
        out
    }

    fn call(&mut self, name: &str, arguments: &str) -> String {
        let mut out = self.close();
        let index = self.output.len();
        let id = fresh_id("fc_");
        let item = function_call(&id, name, arguments);
        let mut begun = item.clone();
        begun["arguments"] = "".into();
        begun["status"] = "in_progress".into();
        out.push_str(&self.event(
            "response.output_item.added",
            json!({"output_index": index, "item": begun}),
        ));
        let fields = json!({"item_id": id, "output_index": index, "delta": arguments});
        out.push_str(&self.event("response.function_call_arguments.delta", fields));
        let fields =
            json!({"item_id": id, "output_index": index, "name": name, "arguments": arguments});
        out.push_str(&self.event("response.function_call_arguments.done", fields));
        out.push_str(&self.event(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        ));
        self.output.push(item);
        out
    }
}

impl Writer for Events {
    const CONTENT_TYPE: &'static str = "text/event-stream";
    const KEEP_ALIVE: &'static str = ": still here\n\n";

    fn opening(&mut self, _: &Running) -> String {
        let begun = self.form.state("in_progress", json!([]), None);
        let mut out = self.event("response.created", json!({"response": begun}));
        out.push_str(&self.event("response.in_progress", json!({"response": begun})));
        out
    }

    fn update(&mut self, update: Update) -> String {
        match update.what {
            What::Part(Part::Text(text)) => self.text(&text),
            What::Part(Part::Call(name, arguments)) => self.call(&name, &arguments),
            What::Token(_) | What::Handover(_) => String::new(),
            What::Finished(finished) => {
                let mut out = self.close();
                let state = self
                    .form
                    .state("completed", json!(self.output), Some(&finished));
                let kind = match finished.outcome.stopped.is_cut() {
                    true => "response.incomplete",
                    false => "response.completed",
                };
                out.push_str(&self.event(kind, json!({"response": state})));
                out
            }
        }
    }

    fn closing(&mut self, _: &Running) -> String {
        String::new()
    }

    fn failure(&mut self, error: &ApiError) -> String {
        let mut state = self.form.state("failed", json!(self.output), None);
        state["error"] = json!({"code": "server_error", "message": error.to_string()});
        self.event("response.failed", json!({"response": state}))
    }
}
