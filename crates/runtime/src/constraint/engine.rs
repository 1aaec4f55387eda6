//! Constraints by llguidance's grammar engine.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};

use super::formats::without_leaps;
use super::recursion::bound_recursion;
use super::schema::{Document, Instances, Manner, reduce};
use super::shortest::{Follower, Shortest};
use super::{ConstraintError, ConstraintSpec, Instance};
use crate::sample::TokenMask;
use crate::tokenizer::Tokenizer;

/// Bytes of an expression or grammar at most, and of a schema, of which what nothing refers to does not count in the end.
const MAX_SOURCE: usize = 1 << 20;
const MAX_SCHEMA: usize = 8 << 20;

/// Tries at an instance of a schema, and the time they may take together.
const TRIES: usize = 300;
const TRYING: Duration = Duration::from_secs(3);

/// Opening brackets of a grammar at most; its parser needs stack for each level.
const MAX_BRACKETS: usize = 4096;

/// Bytes of stack for reading a grammar of so many levels, whatever thread asks.
const STACK: usize = 64 << 20;

/// Marks the bytes of a control token, which no text can contain.
const CONTROL_MARK: u8 = 0xff;

/// Bytes of the end of a text at most that are looked for.
const MAX_END: usize = 16 << 10;

/// Time that the search for an end may take: other answers wait meanwhile.
const SEARCHING: Duration = Duration::from_millis(400);

/// Bytes of a string that is found for an instance at most.
const MAX_STRING: usize = 1 << 10;

/// Space between the parts of JSON: unlimited space is where small models get lost.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// Compiled grammars that are kept; a large one takes tens of MB.
const KEPT: usize = 16;

/// Tokens between the shortest end and the last moment to take it.
const SLACK: usize = 8;

/// Makes constraints for one model. Building it reads the whole vocabulary; share it.
pub struct ConstraintFactory {
    parsers: ParserFactory,
    vocabulary: Arc<Vocabulary>,
    shortest: Arc<Shortest>,
    /// What was compiled last, the newest at the end.
    kept: Mutex<Vec<(ConstraintSpec, Compiled)>>,
}

/// A grammar that was read.
struct Compiled {
    grammar: Arc<TopLevelGrammar>,
    matcher: Matcher,
    left_out: Arc<[&'static str]>,
}

impl Clone for Compiled {
    /// What one text's matcher learns costs memory; the others do not keep it.
    fn clone(&self) -> Self {
        Compiled {
            grammar: self.grammar.clone(),
            matcher: self.matcher.deep_clone(),
            left_out: self.left_out.clone(),
        }
    }
}

/// What a mask needs to know of the tokens.
struct Vocabulary {
    tokens: usize,
    trie: TokEnv,
    end_of_generation: Vec<u32>,
    /// Control tokens, which have no place in a text.
    special: Vec<u32>,
    closing: Closing,
}

/// What brings JSON to an end.
struct Closing {
    /// Brackets that close, one or several.
    brackets: TokenMask,
    /// A quotation mark, with or without such brackets.
    quotes: TokenMask,
    /// A comma, a colon.
    separators: TokenMask,
    /// What opens no bracket and is more than space.
    plain: TokenMask,
    /// A letter that only strings have: `true`, `false`, `null` and numbers do without.
    letter: Option<u32>,
}

impl ConstraintFactory {
    /// For texts of `tokenizer`.
    ///
    /// # Errors
    /// When the model has no token that ends a text.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, ConstraintError> {
        let refuse = |what: String| ConstraintError::Vocabulary { what };
        let tokens = tokenizer.vocab_len() as u32;
        let end_of_generation = tokenizer.end_of_generation().to_vec();
        let &end = end_of_generation
            .first()
            .ok_or_else(|| refuse("it has no token that ends a text".into()))?;
        let words: Vec<Vec<u8>> = (0..tokens).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(tokens, end), &words);
        let trie = trie.with_eos_tokens(&end_of_generation);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let mut parsers = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| refuse(one_line(&error.to_string())))?;
        parsers.quiet();
        *parsers.limits_mut() = limits();
        Ok(ConstraintFactory {
            parsers,
            vocabulary: Arc::new(Vocabulary {
                tokens: tokens as usize,
                end_of_generation,
                special: (0..tokens).filter(|&id| tokenizer.is_special(id)).collect(),
                closing: closing(tokenizer),
                trie: environment,
            }),
            shortest: Arc::new(Shortest::new(limits()).map_err(|what| refuse(one_line(&what)))?),
            kept: Mutex::default(),
        })
    }

    /// A constraint for one text.
    ///
    /// # Errors
    /// When the schema, expression or grammar is invalid, not supported or too large.
    pub fn build(&self, spec: &ConstraintSpec) -> Result<Constraint, ConstraintError> {
        let compiled = match self.recall(spec) {
            Some(compiled) => compiled,
            None => self.compile(spec)?,
        };
        Ok(Constraint {
            matcher: compiled.matcher,
            mask: TokenMask::none(self.vocabulary.tokens),
            vocabulary: self.vocabulary.clone(),
            left_out: compiled.left_out,
            end: End {
                grammar: compiled.grammar,
                shortest: self.shortest.clone(),
                follower: None,
                unread: Vec::new(),
                has_opened: false,
                needed: 0,
                check_at: None,
                rest: None,
            },
        })
    }

    fn recall(&self, spec: &ConstraintSpec) -> Option<Compiled> {
        let kept = self.kept.lock().ok()?;
        let found = kept.iter().find(|(other, _)| other == spec);
        found.map(|(_, compiled)| compiled.clone())
    }

    fn compile(&self, spec: &ConstraintSpec) -> Result<Compiled, ConstraintError> {
        let kind = match spec {
            ConstraintSpec::JsonSchema(_)
            | ConstraintSpec::LooseJsonSchema(_)
            | ConstraintSpec::AnyJson => "JSON schema",
            ConstraintSpec::Regex(_) => "regular expression",
            ConstraintSpec::Lark(_) => "grammar",
        };
        let compiled = match spec {
            ConstraintSpec::JsonSchema(text) => self.compile_schema(text, false),
            ConstraintSpec::LooseJsonSchema(text) => self.compile_schema(text, true),
            ConstraintSpec::AnyJson => self.compile_schema("{}", false),
            ConstraintSpec::Regex(text) => regex_grammar(text).and_then(|one| self.first_of([one])),
            ConstraintSpec::Lark(text) => lark_grammar(text).and_then(|one| self.first_of([one])),
        };
        let compiled = compiled.map_err(|what| ConstraintError::Invalid {
            kind,
            what: one_line(&what),
        })?;
        if let Ok(mut kept) = self.kept.lock() {
            if kept.len() == KEPT {
                kept.remove(0);
            }
            kept.push((spec.clone(), compiled.clone()));
        }
        Ok(compiled)
    }

    fn compile_schema(&self, text: &str, may_leave_out: bool) -> Result<Compiled, String> {
        let schema = parse_schema(text)?;
        let mut refused = None;
        for manner in [Manner::Whole, Manner::WithoutPatterns] {
            let reduced = with_stack(|| reduce(&schema, manner))?;
            let result = reduced.and_then(|reduced| {
                if !may_leave_out && !reduced.left_out.is_empty() {
                    let keywords = reduced.left_out.join(", ");
                    return Err(format!(
                        "a grammar cannot enforce {keywords} as it is used there"
                    ));
                }
                let compiled = self.first_of(json_grammars(reduced.schema));
                let mut compiled = compiled.map_err(|what| match &reduced.dangling {
                    Some(reference) => {
                        format!("{what}; it refers to {reference}, which is not in it")
                    }
                    None => what,
                })?;
                compiled.left_out = reduced.left_out.into();
                Ok(compiled)
            });
            match result {
                Ok(compiled) => return Ok(compiled),
                // What went wrong with the whole schema is what there is to say.
                Err(what) => refused = refused.or(Some(what)),
            }
        }
        Err(refused.unwrap_or_default())
    }

    /// The first of `grammars` that can be read.
    fn first_of(
        &self,
        grammars: impl IntoIterator<Item = TopLevelGrammar>,
    ) -> Result<Compiled, String> {
        let mut result = Err("it is empty".to_owned());
        for grammar in grammars {
            result = self.read(grammar.clone()).map(|matcher| Compiled {
                grammar: Arc::new(grammar),
                matcher,
                left_out: Arc::default(),
            });
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// An instance of a JSON schema, made without the model, of which `conforms` says that it is one. None when none is found in
    /// some hundred tries or three seconds.
    pub fn instance(
        &self,
        schema: &str,
        conforms: &mut (dyn FnMut(&Json) -> bool + Send),
    ) -> Option<Instance> {
        let schema = parse_schema(schema).ok()?;
        let begun = Instant::now();
        let string = |schema: &Json| self.string(schema);
        let find = || {
            let document = Document::new(&schema);
            let mut instances = Instances::new(&document, &schema, &string);
            for _ in 0..TRIES {
                match instances.next() {
                    Some(made) if conforms(&made.value) => return Some(made),
                    _ if begun.elapsed() > TRYING => return None,
                    _ => (),
                }
            }
            None
        };
        let made = with_stack(find).ok().flatten()?;
        Some(Instance {
            text: made.value.to_string(),
            shape: ConstraintSpec::LooseJsonSchema(made.shape.to_string()),
        })
    }

    /// A short string that conforms to a schema of strings.
    fn string(&self, schema: &Json) -> Option<String> {
        let reduced = reduce(schema, Manner::Whole).ok()?;
        let grammar = json_grammars(reduced.schema).pop()?;
        let matcher = self.shortest.begin(grammar);
        let end = Follower::new(matcher).end(MAX_STRING, SEARCHING, |bytes| bytes.len() < 128)?;
        serde_json::from_slice(&end).ok()
    }

    /// Reads the grammar in a thread of its own: hostile grammars need much stack, and bring the engine to panic.
    fn read(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let matcher = with_stack(|| Matcher::new(self.parsers.create_parser(grammar)))?;
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(matcher),
        }
    }
}

fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(STACK);
        let thread = builder.spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("no thread to read it: {error}"))?;
        thread
            .join()
            .map_err(|_| "the grammar engine gave up on it".to_owned())
    })
}

impl std::fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintFactory")
            .field("tokens", &self.vocabulary.tokens)
            .finish_non_exhaustive()
    }
}

/// Follows one text and says what may come next.
pub struct Constraint {
    matcher: Matcher,
    mask: TokenMask,
    vocabulary: Arc<Vocabulary>,
    left_out: Arc<[&'static str]>,
    end: End,
}

/// How the text comes to its end in time.
struct End {
    grammar: Arc<TopLevelGrammar>,
    shortest: Arc<Shortest>,
    /// Made when it is first needed; most texts end long before.
    follower: Option<Follower>,
    /// What the follower has not read yet.
    unread: Vec<u8>,
    /// Whether a bracket was opened since then, and what the shortest end needed.
    has_opened: bool,
    needed: usize,
    /// Tokens left at which the shortest end is looked for again.
    check_at: Option<usize>,
    /// What must still be written, once there is no other way.
    rest: Option<Vec<u8>>,
}

impl Constraint {
    /// Keywords of a [`ConstraintSpec::LooseJsonSchema`] that it does not enforce.
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// Whether the text is complete and nothing can follow.
    pub fn must_stop(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// Whether the text so far is complete: it may end here.
    pub fn is_complete(&mut self) -> bool {
        self.must_stop() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// The tokens that may come next; those that end the text are among them only if it is complete.
    ///
    /// # Errors
    /// When following the grammar costs more than the limits allow.
    pub fn mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos();
        let allowed = allowed.map_err(|error| failed(&error.to_string()))?;
        self.mask.set_words(allowed.as_slice());
        for &token in &self.vocabulary.special {
            self.mask.forbid(token);
        }
        let is_complete = self.is_complete();
        for &token in &self.vocabulary.end_of_generation {
            match is_complete {
                true => self.mask.allow(token),
                false => self.mask.forbid(token),
            }
        }
        Ok(&self.mask)
    }

    /// The tokens that may come next where only `left` more are allowed: all of [`Constraint::mask`], then those of
    /// [`Constraint::closing_mask`] within the last `wind_down`, and at the last moment those of the shortest valid end.
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    pub fn mask_within(
        &mut self,
        left: usize,
        wind_down: usize,
    ) -> Result<&TokenMask, ConstraintError> {
        let first_check = match left <= 2 * wind_down {
            true => left,
            false => left / 2,
        };
        let check_at = *self.end.check_at.get_or_insert(first_check);
        // What was opened must be closed, so the end is further away than it was.
        let has_opened = std::mem::take(&mut self.end.has_opened) && left <= 2 * self.end.needed;
        if self.end.rest.is_none() && (left <= check_at || has_opened) {
            self.look_for_end(left);
        }
        match &self.end.rest {
            Some(rest) if !rest.is_empty() => {
                let (token, _) = self.vocabulary.trie.tok_trie().prefix_token_id(rest);
                self.mask()?;
                let mut only = TokenMask::none(self.vocabulary.tokens);
                only.allow(token);
                self.mask.prefer(&only);
                Ok(&self.mask)
            }
            None if left > wind_down => self.mask(),
            _ => self.closing_mask(),
        }
    }

    /// Decides whether the text must take its shortest end now, or when to look again.
    fn look_for_end(&mut self, left: usize) {
        let end = &mut self.end;
        if end.follower.is_none() {
            let grammar = (*end.grammar).clone();
            let begun = with_stack(|| end.shortest.begin(grammar));
            end.follower = begun.ok().map(Follower::new);
        }
        // Without a follower, `closing_mask` has to do.
        let retry = left.saturating_sub(1 + left / 8);
        end.check_at = Some(retry);
        let Some(follower) = &mut end.follower else {
            return;
        };
        let unread = std::mem::take(&mut end.unread);
        if !follower.write(&unread) {
            return;
        }
        let trie = self.vocabulary.trie.tok_trie();
        let tokens = |bytes: &[u8]| trie.greedy_tokenize(bytes).len() + 1;
        let longest = (8 * left).min(MAX_END);
        let Some(rest) = follower.end(longest, SEARCHING, |bytes| tokens(bytes) + SLACK < left)
        else {
            return;
        };
        let needed = tokens(&rest) + SLACK;
        end.needed = needed;
        match left > needed {
            // What is written until then may make the end longer.
            true => end.check_at = Some(left - (left - needed).div_ceil(3)),
            false => end.rest = Some(rest),
        }
    }

    /// The tokens that may come next and bring the text to its end soon: its end where it is complete, else what closes strings,
    /// lists and objects, else all of [`Constraint::mask`]. What a pattern or a least length asks for still comes.
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    pub fn closing_mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        self.mask()?;
        let mut ends = TokenMask::none(self.vocabulary.tokens);
        for &token in &self.vocabulary.end_of_generation {
            ends.allow(token);
        }
        if self.mask.prefer(&ends) {
            return Ok(&self.mask);
        }
        let closing = &self.vocabulary.closing;
        let is_in_string = closing
            .letter
            .is_some_and(|letter| self.mask.allows(letter));
        // Where nothing closes, as within a pattern, the model goes on, but opens nothing that need not be.
        let steps = match is_in_string {
            true => &[&closing.quotes][..],
            false => &[
                &closing.brackets,
                &closing.quotes,
                &closing.separators,
                &closing.plain,
            ],
        };
        for step in steps {
            if self.mask.prefer(step) {
                break;
            }
        }
        Ok(&self.mask)
    }

    /// Takes note of the token that was chosen.
    ///
    /// # Errors
    /// When the token is not allowed, or following the grammar costs more than the limits allow.
    pub fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.vocabulary.end_of_generation.contains(&token) {
            return match self.is_complete() {
                true => Ok(()),
                false => Err(failed("the text ended before it was complete")),
            };
        }
        let bytes = self.vocabulary.trie.tok_trie().token(token);
        match &mut self.end.rest {
            Some(rest) if rest.starts_with(bytes) => drop(rest.drain(..bytes.len())),
            _ => self.end.rest = None,
        }
        self.end.unread.extend_from_slice(bytes);
        self.end.has_opened |= bytes.iter().any(|byte| matches!(byte, b'[' | b'{'));
        let consumed = self.matcher.consume_token(token);
        consumed.map_err(|error| failed(&error.to_string()))
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint")
            .field("must_stop", &self.must_stop())
            .finish_non_exhaustive()
    }
}

/// Below the engine's defaults: a device has less memory than a server. A state costs up to 2 kB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The bytes of a token as the engine wants them: none for tokens that cannot be part of a text.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if tokenizer.is_special(id) || tokenizer.is_end_of_generation(id) {
        let mut marked = vec![CONTROL_MARK];
        marked.extend_from_slice(bytes);
        marked
    } else if bytes.contains(&CONTROL_MARK) {
        Vec::new()
    } else {
        bytes.to_vec()
    }
}

fn closing(tokenizer: &Tokenizer) -> Closing {
    let tokens = tokenizer.vocab_len();
    let none = || TokenMask::none(tokens);
    let mut closing = Closing {
        brackets: none(),
        quotes: none(),
        separators: none(),
        plain: none(),
        letter: None,
    };
    for id in 0..tokens as u32 {
        let word = tokenizer.token_bytes(id);
        let opens = word.iter().any(|byte| matches!(byte, b'[' | b'{'));
        if !opens && !word.trim_ascii().is_empty() {
            closing.plain.allow(id);
        }
        let (has_quote, rest) = match word.strip_prefix(b"\"") {
            Some(rest) => (true, rest),
            None => (false, word),
        };
        let closes = rest.iter().all(|byte| matches!(byte, b']' | b'}'));
        match word {
            b"" => (),
            b"z" => closing.letter = Some(id),
            b"," | b":" => closing.separators.allow(id),
            _ if closes && has_quote => closing.quotes.allow(id),
            _ if closes => closing.brackets.allow(id),
            _ => (),
        }
    }
    closing
}

fn parse_schema(text: &str) -> Result<Json, String> {
    if text.len() > MAX_SCHEMA {
        return Err(format!(
            "it has {} bytes of at most {MAX_SCHEMA}",
            text.len()
        ));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// What to try in turn: unrolling may make a schema too large.
fn json_grammars(mut schema: Json) -> Vec<TopLevelGrammar> {
    without_leaps(&mut schema);
    if let Json::Object(fields) = &mut schema {
        fields.insert(
            "x-guidance".into(),
            json!({"whitespace_pattern": JSON_SPACE}),
        );
    }
    let mut unrolled = schema.clone();
    let mut grammars = vec![TopLevelGrammar::from_json_schema(schema)];
    if bound_recursion(&mut unrolled) {
        grammars.insert(0, TopLevelGrammar::from_json_schema(unrolled));
    }
    grammars
}

fn regex_grammar(text: &str) -> Result<TopLevelGrammar, String> {
    check_size(text)?;
    Ok(TopLevelGrammar::from_regex(text))
}

fn lark_grammar(text: &str) -> Result<TopLevelGrammar, String> {
    check_size(text)?;
    let brackets = text
        .bytes()
        .filter(|byte| matches!(byte, b'(' | b'[' | b'{'));
    if brackets.count() > MAX_BRACKETS {
        return Err(format!("it has more than {MAX_BRACKETS} brackets"));
    }
    Ok(TopLevelGrammar::from_lark(text.to_owned()))
}

fn check_size(text: &str) -> Result<(), String> {
    if text.len() > MAX_SOURCE {
        return Err(format!(
            "it has {} bytes of at most {MAX_SOURCE}",
            text.len()
        ));
    }
    Ok(())
}

fn failed(what: &str) -> ConstraintError {
    ConstraintError::Failed {
        what: one_line(what),
    }
}

/// `text` on one line, and not without end.
fn one_line(text: &str) -> String {
    const MOST: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
