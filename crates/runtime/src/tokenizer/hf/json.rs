//! The parts of `tokenizer.json` that are large or regular, read without copying text.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

/// `tokenizer.json`. Components whose form varies stay [`Value`]s (`Null` when absent).
#[derive(Deserialize)]
pub(super) struct TokenizerJson<'a> {
    #[serde(borrow)]
    pub model: JsonModel<'a>,
    #[serde(borrow, default)]
    pub added_tokens: Vec<JsonToken<'a>>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    #[serde(default)]
    pub decoder: Value,
}

#[derive(Deserialize)]
pub(super) struct JsonModel<'a> {
    #[serde(borrow, default, rename = "type")]
    pub kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub vocab: JsonVocabulary<'a>,
    #[serde(borrow, default)]
    pub merges: JsonMerges<'a>,
    #[serde(borrow, default)]
    pub unk_token: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub end_of_word_suffix: Option<Cow<'a, str>>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
}

#[derive(Deserialize)]
pub(super) struct JsonToken<'a> {
    pub id: i64,
    #[serde(borrow)]
    pub content: Cow<'a, str>,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    pub normalized: Option<bool>,
    #[serde(default)]
    pub special: bool,
}

/// Text and id of each token in file order. Other shapes (of models that are not supported) are empty.
#[derive(Default)]
pub(super) struct JsonVocabulary<'a>(pub Vec<(Cow<'a, str>, i64)>);

/// Merges in rank order, written `"left right"` or `["left", "right"]`.
#[derive(Default)]
pub(super) struct JsonMerges<'a>(pub Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonVocabulary<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabularyVisitor(PhantomData))
    }
}

struct VocabularyVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for VocabularyVisitor<'a> {
    type Value = JsonVocabulary<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tokens to ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((Text(text), id)) = map.next_entry()? {
            entries.push((text, id));
        }
        Ok(JsonVocabulary(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(JsonVocabulary::default())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonMerges<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs: Vec<JsonMerge<'a>> = Vec::deserialize(deserializer)?;
        Ok(JsonMerges(
            pairs.into_iter().map(|merge| (merge.0, merge.1)).collect(),
        ))
    }
}

struct JsonMerge<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonMerge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor(PhantomData))
    }
}

struct MergeVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for MergeVisitor<'a> {
    type Value = JsonMerge<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
    }

    fn visit_borrowed_str<E: de::Error>(self, line: &'de str) -> Result<Self::Value, E> {
        let (left, right) = split(line)?;
        Ok(JsonMerge(left.into(), right.into()))
    }

    fn visit_str<E: de::Error>(self, line: &str) -> Result<Self::Value, E> {
        let (left, right) = split(line)?;
        Ok(JsonMerge(left.to_owned().into(), right.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let missing = || de::Error::custom("a merge has fewer than two pieces");
        let Text(left) = list.next_element()?.ok_or_else(missing)?;
        let Text(right) = list.next_element()?.ok_or_else(missing)?;
        match list.next_element::<IgnoredAny>()? {
            Some(_) => Err(de::Error::custom("a merge has more than two pieces")),
            None => Ok(JsonMerge(left, right)),
        }
    }
}

fn split<E: de::Error>(line: &str) -> Result<(&str, &str), E> {
    line.split_once(' ')
        .filter(|(_, right)| !right.contains(' '))
        .ok_or_else(|| E::custom("a merge is not two pieces with a space between"))
}

/// A string that is borrowed when it has no escapes (a bare `Cow` never is).
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
