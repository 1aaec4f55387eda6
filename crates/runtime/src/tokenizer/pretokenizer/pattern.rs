//! A small regular-expression engine for pre-tokenizer patterns.
//!
//! Backtracking with Perl's preference order over classified characters. It knows what published
//! tokenizers use: classes, properties, alternation, groups, greedy, lazy and possessive repetition,
//! lookahead, anchors and `(?i)`. Two bounds keep a hostile pattern from hanging: states that were tried
//! at a position are not tried again, and each call has a number of steps proportional to the text;
//! when they are used up the rest of the text stays whole.

use std::collections::HashSet;

use super::super::unicode::Char;
use super::class::{CharClass, ClassBuilder, Dialect};

/// A compiled expression.
#[derive(Debug, Clone)]
pub(in crate::tokenizer) struct Pattern {
    program: Vec<Instruction>,
    classes: Vec<CharClass>,
    alternatives: Vec<Alternative>,
    /// Class of an unbounded run that starts the only alternative: when no match starts at one of its
    /// characters, none starts at the others (their matches would be suffixes).
    leading_run: Option<usize>,
    /// Decides `\b`.
    word: CharClass,
}

/// One top-level alternative: where its code starts and which ASCII characters can start a match.
#[derive(Debug, Clone)]
struct Alternative {
    start: usize,
    first_ascii: u128,
}

#[derive(Debug, Clone)]
enum Instruction {
    Run {
        class: usize,
        min: usize,
        max: usize,
        possessive: bool,
    },
    /// Try `prefer` first, then `other`.
    Split {
        prefer: usize,
        other: usize,
    },
    Jump(usize),
    Lookahead {
        negative: bool,
        next: usize,
    },
    Start,
    End,
    WordBoundary {
        negative: bool,
    },
    Accept,
}

const MAX_INSTRUCTIONS: usize = 1 << 12;
const MAX_DEPTH: usize = 64;
const STEPS_PER_CHARACTER: usize = 512;
const STEPS_BEFORE_MEMORY: usize = 4096;
const MEMORY_STATES: usize = 1 << 22;

impl Pattern {
    /// Compiles `source`; the error says what the engine does not know.
    pub(in crate::tokenizer) fn new(source: &str, dialect: Dialect) -> Result<Self, String> {
        let mut parser = Parser {
            chars: source.chars().collect(),
            position: 0,
            dialect,
            fold_case: false,
            depth: 0,
            classes: Vec::new(),
        };
        let node = parser.alternation()?;
        if parser.position < parser.chars.len() {
            return Err(format!("')' without '(' in the pattern {source:?}"));
        }
        let mut word = ClassBuilder::new(dialect, false);
        word.escape('w');
        let mut pattern = Pattern {
            program: Vec::new(),
            classes: parser.classes,
            alternatives: Vec::new(),
            leading_run: None,
            word: word.build(),
        };
        let branches = match node {
            Node::Alternation(branches) => branches,
            other => vec![other],
        };
        for branch in &branches {
            let start = pattern.program.len();
            pattern.compile(branch)?;
            pattern.push(Instruction::Accept)?;
            let first_ascii = pattern.first_ascii(branch).unwrap_or(u128::MAX);
            pattern
                .alternatives
                .push(Alternative { start, first_ascii });
        }
        if let (
            [_],
            Some(Instruction::Run {
                class,
                min: 1..,
                max: usize::MAX,
                ..
            }),
        ) = (&branches[..], pattern.program.first())
        {
            pattern.leading_run = Some(*class);
        }
        Ok(pattern)
    }

    /// Reports each match in `chars` as (start, end), from left to right. An empty match is reported where
    /// it stands and the search goes on at the next character.
    pub(in crate::tokenizer) fn matches(
        &self,
        chars: &[Char],
        mut found: impl FnMut(usize, usize),
    ) {
        let mut matcher = Matcher {
            pattern: self,
            chars,
            stack: Vec::new(),
            tried: HashSet::new(),
            steps_left: chars
                .len()
                .saturating_add(64)
                .saturating_mul(STEPS_PER_CHARACTER),
        };
        let mut position = 0;
        while position < chars.len() && matcher.steps_left > 0 {
            match matcher.at(position) {
                Some(end) => {
                    found(position, end);
                    position = end.max(position + 1);
                }
                None => position = self.next_start(chars, position),
            }
        }
    }

    fn next_start(&self, chars: &[Char], failed: usize) -> usize {
        let run = self.leading_run.map(|class| &self.classes[class]);
        match run {
            Some(class) => {
                let rest = &chars[failed..];
                let length = rest.iter().take_while(|&&c| class.matches(c)).count();
                failed + length.max(1)
            }
            None => failed + 1,
        }
    }

    fn push(&mut self, instruction: Instruction) -> Result<usize, String> {
        if self.program.len() >= MAX_INSTRUCTIONS {
            return Err(format!(
                "the pattern needs more than {MAX_INSTRUCTIONS} instructions"
            ));
        }
        self.program.push(instruction);
        Ok(self.program.len() - 1)
    }

    fn compile(&mut self, node: &Node) -> Result<(), String> {
        match node {
            Node::Sequence(nodes) => nodes.iter().try_for_each(|node| self.compile(node)),
            Node::Class(class) => self.run(*class, 1, 1, false),
            Node::Alternation(branches) => self.compile_branches(branches),
            Node::Repeat {
                node,
                min,
                max,
                mode,
            } => self.compile_repeat(node, *min, *max, *mode),
            Node::Lookahead { node, negative } => {
                let look = self.push(Instruction::Lookahead {
                    negative: *negative,
                    next: 0,
                })?;
                self.compile(node)?;
                self.push(Instruction::Accept)?;
                let after = self.program.len();
                self.program[look] = Instruction::Lookahead {
                    negative: *negative,
                    next: after,
                };
                Ok(())
            }
            Node::Assertion(instruction) => self.push(instruction.clone()).map(drop),
        }
    }

    fn run(
        &mut self,
        class: usize,
        min: usize,
        max: usize,
        possessive: bool,
    ) -> Result<(), String> {
        self.push(Instruction::Run {
            class,
            min,
            max,
            possessive,
        })
        .map(drop)
    }

    fn compile_branches(&mut self, branches: &[Node]) -> Result<(), String> {
        let mut jumps = Vec::new();
        for (index, branch) in branches.iter().enumerate() {
            if index + 1 == branches.len() {
                self.compile(branch)?;
                break;
            }
            let split = self.push(Instruction::Accept)?;
            self.compile(branch)?;
            jumps.push(self.push(Instruction::Accept)?);
            self.program[split] = Instruction::Split {
                prefer: split + 1,
                other: self.program.len(),
            };
        }
        for jump in jumps {
            self.program[jump] = Instruction::Jump(self.program.len());
        }
        Ok(())
    }

    fn compile_repeat(
        &mut self,
        node: &Node,
        min: usize,
        max: usize,
        mode: Mode,
    ) -> Result<(), String> {
        if let (Node::Class(class), Mode::Greedy | Mode::Possessive) = (node, mode) {
            return self.run(*class, min, max, mode == Mode::Possessive);
        }
        if mode == Mode::Possessive {
            return Err("a possessive group is not supported".to_owned());
        }
        if min > MAX_INSTRUCTIONS || (max != usize::MAX && max > MAX_INSTRUCTIONS) {
            return Err(format!(
                "a group is repeated more than {MAX_INSTRUCTIONS} times"
            ));
        }
        for _ in 0..min {
            self.compile(node)?;
        }
        let split = |inside: usize, outside: usize| match mode {
            Mode::Lazy => Instruction::Split {
                prefer: outside,
                other: inside,
            },
            _ => Instruction::Split {
                prefer: inside,
                other: outside,
            },
        };
        if max == usize::MAX {
            let head = self.push(Instruction::Accept)?;
            self.compile(node)?;
            self.push(Instruction::Jump(head))?;
            self.program[head] = split(head + 1, self.program.len());
            return Ok(());
        }
        let mut heads = Vec::new();
        for _ in min..max {
            heads.push(self.push(Instruction::Accept)?);
            self.compile(node)?;
        }
        for head in heads {
            self.program[head] = split(head + 1, self.program.len());
        }
        Ok(())
    }

    /// ASCII characters that can start a match of `node`; `None` when it can be empty or is not known.
    fn first_ascii(&self, node: &Node) -> Option<u128> {
        match node {
            Node::Class(class) => Some(self.classes[*class].ascii()),
            Node::Repeat { node, min, .. } if *min > 0 => self.first_ascii(node),
            Node::Alternation(branches) => branches
                .iter()
                .try_fold(0, |all, branch| Some(all | self.first_ascii(branch)?)),
            Node::Sequence(nodes) => {
                let mut all = 0;
                for node in nodes {
                    if let Some(first) = self.first_ascii(node) {
                        return Some(all | first);
                    }
                    match node {
                        Node::Repeat { node, max: 1.., .. } => all |= self.first_ascii(node)?,
                        _ => return None,
                    }
                }
                None
            }
            _ => None,
        }
    }
}

struct Matcher<'a> {
    pattern: &'a Pattern,
    chars: &'a [Char],
    stack: Vec<Frame>,
    tried: HashSet<(u32, u32)>,
    steps_left: usize,
}

/// Where to go on after a failure.
#[derive(Debug, Clone, Copy)]
struct Frame {
    instruction: usize,
    position: usize,
    /// A run may still give back characters down to here; equal to `position` when not.
    lowest: usize,
}

impl Matcher<'_> {
    /// End of the preferred match that starts at `position`.
    fn at(&mut self, position: usize) -> Option<usize> {
        let code_point = self.chars[position].code_point();
        for alternative in &self.pattern.alternatives {
            if code_point < 0x80 && alternative.first_ascii >> code_point & 1 == 0 {
                self.steps_left = self.steps_left.saturating_sub(1);
                continue;
            }
            if let Some(end) = self.run(alternative.start, position) {
                return Some(end);
            }
        }
        None
    }

    fn run(&mut self, start: usize, position: usize) -> Option<usize> {
        let base = self.stack.len();
        self.tried.clear();
        self.stack.push(Frame {
            instruction: start,
            position,
            lowest: position,
        });
        let mut steps = 0;
        let mut end = None;
        while self.stack.len() > base && end.is_none() {
            let frame = self.stack.len() - 1;
            let Frame {
                instruction,
                position,
                lowest,
            } = self.stack[frame];
            if position > lowest {
                self.stack[frame].position -= 1;
            } else {
                self.stack.pop();
            }
            end = self.follow(instruction, position, &mut steps);
        }
        self.stack.truncate(base);
        end
    }

    /// Runs from one state until it accepts (the end) or fails.
    fn follow(&mut self, mut at: usize, mut position: usize, steps: &mut usize) -> Option<usize> {
        let pattern = self.pattern;
        loop {
            *steps += 1;
            self.steps_left = self.steps_left.checked_sub(1)?;
            if *steps > STEPS_BEFORE_MEMORY
                && (self.tried.len() >= MEMORY_STATES
                    || !self.tried.insert((at as u32, position as u32)))
            {
                return None;
            }
            match &pattern.program[at] {
                Instruction::Run {
                    class,
                    min,
                    max,
                    possessive,
                } => {
                    let class = &pattern.classes[*class];
                    let rest = &self.chars[position..];
                    let rest = &rest[..rest.len().min(*max)];
                    let length = rest.iter().take_while(|&&c| class.matches(c)).count();
                    self.steps_left = self.steps_left.saturating_sub(length / 8);
                    if length < *min {
                        return None;
                    }
                    at += 1;
                    if length > *min && !possessive {
                        self.stack.push(Frame {
                            instruction: at,
                            position: position + length - 1,
                            lowest: position + min,
                        });
                    }
                    position += length;
                }
                Instruction::Split { prefer, other } => {
                    self.stack.push(Frame {
                        instruction: *other,
                        position,
                        lowest: position,
                    });
                    at = *prefer;
                }
                Instruction::Jump(target) => at = *target,
                Instruction::Lookahead { negative, next } => {
                    let outer = std::mem::take(&mut self.tried);
                    let matched = self.run(at + 1, position).is_some();
                    self.tried = outer;
                    if matched == *negative {
                        return None;
                    }
                    at = *next;
                }
                Instruction::Start if position == 0 => at += 1,
                Instruction::End if position == self.chars.len() => at += 1,
                Instruction::WordBoundary { negative } => {
                    let before = position > 0 && pattern.word.matches(self.chars[position - 1]);
                    let after = self
                        .chars
                        .get(position)
                        .is_some_and(|&c| pattern.word.matches(c));
                    if (before != after) == *negative {
                        return None;
                    }
                    at += 1;
                }
                Instruction::Accept => return Some(position),
                Instruction::Start | Instruction::End => return None,
            }
        }
    }
}

enum Node {
    Class(usize),
    Sequence(Vec<Node>),
    Alternation(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: usize,
        max: usize,
        mode: Mode,
    },
    Lookahead {
        node: Box<Node>,
        negative: bool,
    },
    Assertion(Instruction),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Greedy,
    Lazy,
    Possessive,
}

struct Parser {
    chars: Vec<char>,
    position: usize,
    dialect: Dialect,
    fold_case: bool,
    depth: usize,
    classes: Vec<CharClass>,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.position).copied()
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or("the pattern ends too early")?;
        self.position += 1;
        Ok(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = &self.chars[self.position..];
        let length = text.chars().count();
        let found = rest.len() >= length && text.chars().eq(rest[..length].iter().copied());
        if found {
            self.position += length;
        }
        found
    }

    fn alternation(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups are nested more than {MAX_DEPTH} deep"));
        }
        let mut branches = vec![self.sequence()?];
        while self.eat("|") {
            branches.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(match branches.len() {
            1 => branches.remove(0),
            _ => Node::Alternation(branches),
        })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while !matches!(self.peek(), None | Some('|' | ')')) {
            if let Some(atom) = self.atom()? {
                nodes.push(self.repetition(atom)?);
            }
        }
        Ok(Node::Sequence(nodes))
    }

    fn atom(&mut self) -> Result<Option<Node>, String> {
        Ok(Some(match self.next()? {
            '(' => return self.group(),
            '[' => {
                let class = self.bracket()?;
                self.class(class)
            }
            '.' => {
                let mut builder = ClassBuilder::new(self.dialect, false);
                builder.range(0x0A, 0x0A);
                builder.negate();
                self.class(builder.build())
            }
            '^' => Node::Assertion(Instruction::Start),
            '$' => Node::Assertion(Instruction::End),
            '\\' => match self.peek() {
                Some('b') => self.assertion(Instruction::WordBoundary { negative: false }),
                Some('B') => self.assertion(Instruction::WordBoundary { negative: true }),
                Some('A') => self.assertion(Instruction::Start),
                Some('z' | 'Z') => self.assertion(Instruction::End),
                _ => {
                    let mut builder = ClassBuilder::new(self.dialect, self.fold_case);
                    if let Some(literal) = self.escape(&mut builder)? {
                        builder.range(literal, literal);
                    }
                    self.class(builder.build())
                }
            },
            literal => {
                let mut builder = ClassBuilder::new(self.dialect, self.fold_case);
                builder.range(literal as u32, literal as u32);
                self.class(builder.build())
            }
        }))
    }

    fn assertion(&mut self, instruction: Instruction) -> Node {
        self.position += 1;
        Node::Assertion(instruction)
    }

    fn class(&mut self, class: CharClass) -> Node {
        self.classes.push(class);
        Node::Class(self.classes.len() - 1)
    }

    fn group(&mut self) -> Result<Option<Node>, String> {
        let outer_case = self.fold_case;
        let lookahead = if self.eat("?=") {
            Some(false)
        } else if self.eat("?!") {
            Some(true)
        } else {
            None
        };
        if lookahead.is_none() && self.eat("?i)") {
            // Holds to the end of the enclosing group, whose caller restores it.
            self.fold_case = true;
            return Ok(None);
        }
        if lookahead.is_none() && !self.eat("?:") {
            if self.eat("?i:") {
                self.fold_case = true;
            } else if self.eat("?-i:") {
                self.fold_case = false;
            } else if self.peek() == Some('?') {
                return Err(
                    "a group of a kind that is not supported (lookbehind, atomic, named)"
                        .to_owned(),
                );
            }
        }
        let node = self.alternation()?;
        self.fold_case = outer_case;
        if !self.eat(")") {
            return Err("'(' without ')'".to_owned());
        }
        Ok(Some(match lookahead {
            Some(negative) => Node::Lookahead {
                node: Box::new(node),
                negative,
            },
            None => node,
        }))
    }

    fn repetition(&mut self, mut node: Node) -> Result<Node, String> {
        loop {
            let counted = self.peek() == Some('{');
            let (min, max) = match self.peek() {
                Some('?') => (0, 1),
                Some('*') => (0, usize::MAX),
                Some('+') => (1, usize::MAX),
                Some('{') => match self.counts() {
                    Some(counts) => counts,
                    None => return Ok(node),
                },
                _ => return Ok(node),
            };
            if !counted {
                self.position += 1;
            }
            if min > max {
                return Err("a repetition's lower bound is above its upper bound".to_owned());
            }
            let mode = if self.eat("?") {
                Mode::Lazy
            } else if !counted && self.dialect == Dialect::Unicode && self.eat("+") {
                Mode::Possessive
            } else {
                Mode::Greedy
            };
            node = Node::Repeat {
                node: Box::new(node),
                min,
                max,
                mode,
            };
        }
    }

    /// Reads `{m}`, `{m,}`, `{,n}` or `{m,n}`; leaves anything else for a literal brace.
    fn counts(&mut self) -> Option<(usize, usize)> {
        let close = self.chars[self.position..].iter().position(|&c| c == '}')?;
        let inside: String = self.chars[self.position + 1..self.position + close]
            .iter()
            .collect();
        let counts = match inside.split_once(',') {
            None => inside.parse().ok().map(|count| (count, count)),
            Some((min, "")) => min.parse().ok().map(|min| (min, usize::MAX)),
            Some(("", max)) => max.parse().ok().map(|max| (0, max)),
            Some((min, max)) => min.parse().ok().zip(max.parse().ok()),
        }?;
        self.position += close + 1;
        Some(counts)
    }

    /// The rest of `[...]` after the opening bracket.
    fn bracket(&mut self) -> Result<CharClass, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("classes are nested more than {MAX_DEPTH} deep"));
        }
        let unicode = self.dialect == Dialect::Unicode;
        let mut builder = ClassBuilder::new(self.dialect, self.fold_case);
        if self.eat("^") {
            builder.negate();
        }
        let mut first = true;
        loop {
            if unicode && self.eat("&&") {
                return self.intersection(builder);
            }
            let c = self.next()?;
            let low = match c {
                ']' if !first => break,
                '[' if unicode => {
                    let class = self.bracket()?;
                    builder.nested(class);
                    first = false;
                    continue;
                }
                '\\' => self.escape(&mut builder)?,
                _ => Some(c as u32),
            };
            first = false;
            let Some(low) = low else { continue };
            let next_is = |offset| self.chars.get(self.position + offset).copied();
            if next_is(0) == Some('-') && !matches!(next_is(1), None | Some(']')) {
                self.position += 1;
                let high = match self.next()? {
                    '\\' => self.escape(&mut builder)?,
                    c => Some(c as u32),
                };
                match high {
                    Some(high) if low <= high => builder.range(low, high),
                    _ => return Err("a class has a range that runs backwards".to_owned()),
                }
            } else {
                builder.range(low, low);
            }
        }
        self.depth -= 1;
        Ok(builder.build())
    }

    /// `left && right]`: characters in both; a leading `^` negates the whole intersection.
    fn intersection(&mut self, left: ClassBuilder) -> Result<CharClass, String> {
        self.position = self.position.min(self.chars.len());
        let right = self.bracket()?;
        self.depth -= 1;
        let mut whole = left;
        whole.intersect(right);
        Ok(whole.build())
    }

    /// An escape after the backslash: adds a class to `builder`, or gives the code point it stands for.
    fn escape(&mut self, builder: &mut ClassBuilder) -> Result<Option<u32>, String> {
        let c = self.next()?;
        if c == 'p' || c == 'P' {
            let name = self.braced()?;
            return match builder.property(&name, c == 'P') {
                true => Ok(None),
                false => Err(format!("the property {name:?} is not supported")),
            };
        }
        if builder.escape(c) {
            return Ok(None);
        }
        Ok(Some(match c {
            'n' => 0x0A,
            'r' => 0x0D,
            't' => 0x09,
            'f' => 0x0C,
            'v' => 0x0B,
            'e' => 0x1B,
            '0' => 0,
            'u' => self.hexadecimal(4)?,
            'x' if self.peek() == Some('{') => {
                let digits = self.braced()?;
                u32::from_str_radix(&digits, 16).map_err(|_| "a bad \\x{...}".to_owned())?
            }
            'x' => self.hexadecimal(2)?,
            c if c.is_ascii_alphanumeric() => {
                return Err(format!("the escape \\{c} is not supported"));
            }
            c => c as u32,
        }))
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32, String> {
        let mut value = 0;
        for _ in 0..digits {
            let digit = self
                .next()?
                .to_digit(16)
                .ok_or("a bad hexadecimal escape")?;
            value = value * 16 + digit;
        }
        Ok(value)
    }

    /// `{name}`, or the single letter of `\pL`.
    fn braced(&mut self) -> Result<String, String> {
        if !self.eat("{") {
            return Ok(self.next()?.to_string());
        }
        let mut name = String::new();
        loop {
            match self.next()? {
                '}' => return Ok(name),
                c => name.push(c),
            }
        }
    }
}
