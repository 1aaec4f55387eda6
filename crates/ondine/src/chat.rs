//! A conversation: messages in, pieces of the answer out.

use ondine_runtime::chat_template::{ChatRequest, Message};
use ondine_runtime::{GenerateOptions, Generation, Piece, Session};

use crate::Error;

/// A conversation with a model. What was said before is not computed again.
pub struct Chat {
    session: Session,
    messages: Vec<Message>,
}

impl Chat {
    /// A conversation in `session`.
    pub fn new(session: Session) -> Self {
        Chat {
            session,
            messages: Vec::new(),
        }
    }

    /// Adds a message: an instruction for the conversation, or what was said elsewhere.
    #[must_use]
    pub fn with_message(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// What was said so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The session below.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Says `text` and returns the answer, piece by piece. Answers become part of the conversation, also
    /// unfinished ones.
    ///
    /// # Errors
    /// When the conversation cannot be rendered, or does not fit into the context.
    pub fn send(&mut self, text: &str, options: GenerateOptions) -> Result<Answer<'_>, Error> {
        self.messages.push(Message::user(text));
        let begun = match self.render() {
            Ok(tokens) => self.session.generate(&tokens, options).map_err(Error::from),
            Err(error) => Err(error),
        };
        match begun {
            Ok(generation) => Ok(Answer {
                generation,
                messages: &mut self.messages,
                text: String::new(),
            }),
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn render(&self) -> Result<Vec<u32>, Error> {
        let model = self.session.model();
        let request = ChatRequest::new(self.messages.clone());
        let rendered = model.chat_template()?.render(&request)?;
        Ok(model.encode_rendered(&rendered))
    }
}

/// An answer in the making: an iterator over its pieces.
pub struct Answer<'c> {
    generation: Generation<'c>,
    messages: &'c mut Vec<Message>,
    text: String,
}

impl<'c> Answer<'c> {
    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended and its figures.
    pub fn generation(&self) -> &Generation<'c> {
        &self.generation
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.generation.next()?;
        if let Ok(piece) = &piece {
            self.text.push_str(&piece.text);
        }
        Some(piece.map_err(Error::from))
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        self.messages.push(Message::assistant(text));
    }
}
