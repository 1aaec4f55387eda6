//! What a provider says, read from bytes as they come: server-sent events, or one JSON text from those that do not stream.

use ondine_hybrid::cloud::Fault;
use serde_json::Value;

/// One thing that a provider says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// More of the answer.
    Text(String),
    /// The answer is at its end; true if it was cut off by its length.
    Stopped(bool),
    /// Tokens of the answer.
    Tokens(usize),
    /// There will be no more.
    Done,
}

/// Bytes of one event at most.
const MOST_LINE: usize = 1 << 20;

/// Reads events from bytes however they are cut.
pub(super) struct Events {
    is_stream: bool,
    held: Vec<u8>,
    /// How far the held bytes were searched for the end of a line.
    searched: usize,
}

impl Events {
    pub(super) fn new(is_stream: bool) -> Self {
        Events {
            is_stream,
            held: Vec::new(),
            searched: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Said>, Fault> {
        self.held.extend_from_slice(bytes);
        let mut said = Vec::new();
        if !self.is_stream {
            return Ok(said);
        }
        let mut begin = 0;
        while let Some(end) = self.held[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + end;
            line(&self.held[begin..end], &mut said)?;
            begin = end + 1;
            self.searched = begin;
        }
        self.held.drain(..begin);
        self.searched = self.held.len();
        match self.held.len() <= MOST_LINE {
            true => Ok(said),
            false => Err(Fault::Garbled("an event is too long".into())),
        }
    }

    /// What is left when the connection is at its end.
    pub(super) fn finish(&mut self) -> Result<Vec<Said>, Fault> {
        let held = std::mem::take(&mut self.held);
        let mut said = Vec::new();
        match self.is_stream {
            true => line(&held, &mut said)?,
            false => {
                let whole = serde_json::from_slice(&held)
                    .map_err(|_| Fault::Garbled("it is not JSON".into()))?;
                object(&whole, &mut said)?;
            }
        }
        Ok(said)
    }
}

fn line(line: &[u8], said: &mut Vec<Said>) -> Result<(), Fault> {
    // Comments, names of events and empty lines say nothing.
    let Some(data) = line.strip_prefix(b"data:") else {
        return Ok(());
    };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        said.push(Said::Done);
        return Ok(());
    }
    if data.is_empty() {
        return Ok(());
    }
    let event =
        serde_json::from_slice(data).map_err(|_| Fault::Garbled("an event is not JSON".into()))?;
    object(&event, said)
}

/// A chunk of a stream, or a whole completion.
fn object(object: &Value, said: &mut Vec<Said>) -> Result<(), Fault> {
    if !object["error"].is_null() {
        return Err(Fault::Broken);
    }
    let choice = &object["choices"][0];
    let texts = [&choice["delta"]["content"], &choice["message"]["content"]];
    let text = texts.into_iter().find_map(Value::as_str);
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        said.push(Said::Text(text.to_owned()));
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        said.push(Said::Stopped(reason == "length"));
    }
    if let Some(tokens) = object["usage"]["completion_tokens"].as_u64() {
        said.push(Said::Tokens(usize::try_from(tokens).unwrap_or(usize::MAX)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\r\nevent: x\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Grüße\"},\"finish_reason\":null}]}\n\n\
        data:{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";

    #[test]
    fn however_a_stream_is_cut_it_says_the_same() {
        for size in 1..80 {
            let mut events = Events::new(true);
            let mut said = Vec::new();
            for piece in STREAM.as_bytes().chunks(size) {
                said.extend(events.push(piece).unwrap());
            }
            said.extend(events.finish().unwrap());
            let expected = [
                Said::Text("Grüße".into()),
                Said::Stopped(true),
                Said::Tokens(7),
                Said::Done,
            ];
            assert_eq!(said, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn nonsense_is_an_error_and_long_lines_are_bounded() {
        for nonsense in [
            "data: {\n",
            "data: nonsense\n",
            "data: {\"error\":{\"message\":\"x\"}}\n",
        ] {
            assert!(
                Events::new(true).push(nonsense.as_bytes()).is_err(),
                "{nonsense}"
            );
        }
        let mut events = Events::new(true);
        let long = vec![b'x'; 64 << 10];
        let result = (0..100).try_for_each(|_| events.push(&long).map(drop));
        assert!(matches!(result, Err(Fault::Garbled(_))));
        let mut whole = Events::new(false);
        whole
            .push(br#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#)
            .unwrap();
        assert_eq!(
            whole.finish().unwrap(),
            [Said::Text("hi".into()), Said::Stopped(false)]
        );
    }
}
