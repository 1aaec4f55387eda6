//! What may leave the device, as a checked type.
//!
//! A policy is one TOML file. It is parsed once; unknown keys are errors, because a mistyped rule would be a rule that does not
//! hold. Without a file the policy is [`Policy::local_only`].

use crate::pii::DataClass;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The policy's JSON schema, for editors.
pub const SCHEMA: &str = include_str!("../data/policy.schema.json");

/// Policies to start from, by name.
pub const EXAMPLES: [(&str, &str); 3] = [
    ("health", include_str!("../data/policies/health.toml")),
    ("children", include_str!("../data/policies/children.toml")),
    ("office", include_str!("../data/policies/office.toml")),
];

/// What happens to text that holds data of a class. Ordered from the freest to the strictest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// It may leave as it is.
    Allow,
    /// Placeholders leave in its stead; the answer gets it back.
    Placeholder,
    /// The whole request stays on the device.
    LocalOnly,
}

/// Where a class of tasks runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the device.
    Local,
    /// At a provider, if everything else allows it.
    Cloud,
    /// Wherever it is best.
    Any,
}

/// A provider that requests may go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its name in rules, receipts and logs.
    pub name: String,
    /// Base address of its OpenAI-compatible interface: `https`, or `http` on a loopback address.
    pub endpoint: String,
    /// The model to ask for.
    pub model: String,
    /// Where its machines stand, for example `eu`.
    pub region: String,
    /// The environment variable that holds the key.
    #[serde(default)]
    pub key_env: Option<String>,
    /// Classes whose data this provider may see if their rule is `allow`; absent for all of them.
    #[serde(default)]
    pub classes: Option<BTreeSet<DataClass>>,
    /// Price of a million input tokens, in the policy's currency.
    #[serde(default)]
    pub input_price: f64,
    /// Price of a million output tokens, in the policy's currency.
    #[serde(default)]
    pub output_price: f64,
    /// Longest context, in tokens.
    #[serde(default = "default_context")]
    pub context_tokens: u32,
    /// True if it can call tools.
    #[serde(default)]
    pub tools: bool,
    /// True if it reads images.
    #[serde(default)]
    pub vision: bool,
}

fn default_context() -> u32 {
    8192
}

/// Limits on what one request and one day may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Time for a whole answer, in milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Most money a day, in the policy's currency.
    #[serde(default)]
    pub money_per_day: Option<f64>,
    /// Most energy a request, in joules.
    #[serde(default)]
    pub joules_per_request: Option<f64>,
}

/// How the scanner reads on behalf of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScannerRules {
    /// Least confidence of a finding that counts, 0 to 1.
    #[serde(default = "default_confidence")]
    pub min_confidence: f32,
    /// Time for a scan in milliseconds; afterwards the text counts as private.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
    /// Words of the user, by the kind that they count as.
    #[serde(default)]
    pub dictionaries: BTreeMap<String, Vec<String>>,
}

fn default_confidence() -> f32 {
    0.3
}

fn default_timeout() -> u64 {
    1000
}

impl Default for ScannerRules {
    fn default() -> Self {
        Self {
            min_confidence: default_confidence(),
            timeout_ms: default_timeout(),
            dictionaries: BTreeMap::new(),
        }
    }
}

/// What happens without a connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineRules {
    /// True to behave as if there never were a connection.
    #[serde(default)]
    pub always: bool,
    /// True to refuse tasks pinned to the cloud instead of answering them on the device.
    #[serde(default)]
    pub refuse_cloud_tasks: bool,
}

/// What is written down. Prompt text never is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggingRules {
    /// True to keep decision receipts.
    #[serde(default)]
    pub receipts: bool,
    /// Days after which receipts are deleted.
    #[serde(default)]
    pub keep_days: Option<u32>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    name: String,
    #[serde(default = "default_currency")]
    currency: String,
    #[serde(default)]
    quality_target: Option<f32>,
    #[serde(default)]
    default: Option<Rule>,
    #[serde(default)]
    classes: BTreeMap<DataClass, Rule>,
    #[serde(default)]
    regions: Option<BTreeSet<String>>,
    #[serde(default)]
    providers: Vec<Provider>,
    #[serde(default)]
    tasks: BTreeMap<String, Place>,
    #[serde(default)]
    budgets: Budgets,
    #[serde(default)]
    scanner: ScannerRules,
    #[serde(default)]
    offline: OfflineRules,
    #[serde(default)]
    logging: LoggingRules,
}

fn default_currency() -> String {
    "EUR".into()
}

/// A policy whose parts agree with each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    name: String,
    currency: String,
    quality_target: f32,
    rules: BTreeMap<DataClass, Rule>,
    providers: Vec<Provider>,
    tasks: BTreeMap<String, Place>,
    /// Limits on what one request and one day may use.
    pub budgets: Budgets,
    /// How the scanner reads.
    pub scanner: ScannerRules,
    /// What happens without a connection.
    pub offline: OfflineRules,
    /// What is written down.
    pub logging: LoggingRules,
}

/// Why a text is no policy.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Not TOML, or a key or value that no policy has.
    #[error("the policy cannot be read: {0}")]
    Syntax(String),
    /// Keys and values are known but make no sense together.
    #[error("the policy makes no sense at `{key}`: {reason}")]
    Meaning {
        /// The key to look at.
        key: String,
        /// What is wrong there.
        reason: String,
    },
}

impl Policy {
    /// Largest policy file, in bytes.
    pub const MAX_BYTES: usize = 1 << 20;

    /// The policy of those who wrote none: nothing leaves.
    pub fn local_only() -> Self {
        Self {
            name: "local only".into(),
            currency: default_currency(),
            quality_target: 0.0,
            rules: DataClass::ALL.map(|class| (class, Rule::LocalOnly)).into(),
            providers: Vec::new(),
            tasks: BTreeMap::new(),
            budgets: Budgets::default(),
            scanner: ScannerRules::default(),
            offline: OfflineRules::default(),
            logging: LoggingRules::default(),
        }
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] names the line or key and what to change.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > Self::MAX_BYTES {
            return Err(PolicyError::Syntax(format!(
                "it has more than {} bytes",
                Self::MAX_BYTES
            )));
        }
        let file: File = toml::from_str(text)
            .map_err(|error| PolicyError::Syntax(error.to_string().trim().to_string()))?;
        check(&file)?;
        let default = file.default.unwrap_or(Rule::LocalOnly);
        let mut rules: BTreeMap<_, _> = DataClass::ALL.map(|class| (class, default)).into();
        rules.extend(file.classes);
        let regions = file.regions;
        let in_region = |provider: &Provider| {
            regions
                .as_ref()
                .is_none_or(|regions| regions.contains(&provider.region))
        };
        Ok(Self {
            name: file.name,
            currency: file.currency,
            quality_target: file.quality_target.unwrap_or(0.7),
            rules,
            providers: file.providers.into_iter().filter(in_region).collect(),
            tasks: file.tasks,
            budgets: file.budgets,
            scanner: file.scanner,
            offline: file.offline,
            logging: file.logging,
        })
    }

    /// The policy's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The currency of prices and budgets.
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// The probability of a right answer that is good enough, 0 to 1.
    pub fn quality_target(&self) -> f32 {
        self.quality_target
    }

    /// The rule of a class.
    pub fn rule(&self, class: DataClass) -> Rule {
        self.rules.get(&class).copied().unwrap_or(Rule::LocalOnly)
    }

    /// The rule of a class at a provider: data that may leave but not to this provider is replaced.
    pub fn rule_at(&self, class: DataClass, provider: &Provider) -> Rule {
        match (self.rule(class), &provider.classes) {
            (Rule::Allow, Some(classes)) if !classes.contains(&class) => Rule::Placeholder,
            (rule, _) => rule,
        }
    }

    /// The providers that the policy's regions allow.
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// Where tasks of this class run.
    pub fn place(&self, task: &str) -> Place {
        self.tasks.get(task).copied().unwrap_or(Place::Any)
    }
}

fn check(file: &File) -> Result<(), PolicyError> {
    let wrong = |key: &str, reason: &str| {
        Err(PolicyError::Meaning {
            key: key.into(),
            reason: reason.into(),
        })
    };
    if file.version != 1 {
        return wrong("version", "only version 1 is known");
    }
    if file
        .quality_target
        .is_some_and(|target| !(0.0..=1.0).contains(&target))
    {
        return wrong("quality_target", "it must lie between 0 and 1");
    }
    if !(0.0..=1.0).contains(&file.scanner.min_confidence) {
        return wrong("scanner.min_confidence", "it must lie between 0 and 1");
    }
    if file.scanner.timeout_ms == 0 {
        return wrong("scanner.timeout_ms", "a scan needs at least 1 ms");
    }
    if file
        .classes
        .get(&DataClass::Secret)
        .or(file.default.as_ref())
        == Some(&Rule::Allow)
    {
        return wrong(
            "classes.secret",
            "secrets may never leave as they are; use placeholder or local_only",
        );
    }
    let amounts = [file.budgets.money_per_day, file.budgets.joules_per_request];
    if amounts
        .into_iter()
        .flatten()
        .any(|amount| !amount.is_finite() || amount < 0.0)
    {
        return wrong("budgets", "amounts must be finite and not negative");
    }
    let mut names = BTreeSet::new();
    for (index, provider) in file.providers.iter().enumerate() {
        let key = |name: &str| format!("providers[{index}].{name}");
        if provider.name.is_empty() || !names.insert(&provider.name) {
            return wrong(&key("name"), "each provider needs a name of its own");
        }
        if !is_safe_endpoint(&provider.endpoint) {
            return wrong(
                &key("endpoint"),
                "it must begin with https://, or with http:// and a loopback address",
            );
        }
        if [provider.input_price, provider.output_price]
            .iter()
            .any(|price| !price.is_finite() || *price < 0.0)
        {
            return wrong(
                &key("input_price"),
                "prices must be finite and not negative",
            );
        }
        if provider
            .key_env
            .as_ref()
            .is_some_and(|name| !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        {
            return wrong(
                &key("key_env"),
                "it must name an environment variable, not hold a key",
            );
        }
    }
    if file.providers.is_empty() && file.tasks.values().any(|place| *place == Place::Cloud) {
        return wrong(
            "tasks",
            "a task is pinned to the cloud, but there is no provider",
        );
    }
    Ok(())
}

fn is_safe_endpoint(endpoint: &str) -> bool {
    let host = |rest: &str| {
        rest.split(['/', '?', '#'])
            .next()
            .unwrap_or_default()
            .to_string()
    };
    if let Some(rest) = endpoint.strip_prefix("https://") {
        return !host(rest).is_empty() && !host(rest).contains('@');
    }
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return false;
    };
    let host = host(rest);
    let name = host
        .rsplit_once(':')
        .map_or(host.as_str(), |(name, _)| name);
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_policies_and_say_what_they_promise() {
        for (name, text) in EXAMPLES {
            let policy = Policy::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(policy.name(), name);
            assert!(policy.rule(DataClass::Secret) > Rule::Allow);
        }
        let health = Policy::parse(EXAMPLES[0].1).unwrap();
        assert_eq!(health.rule(DataClass::Health), Rule::LocalOnly);
    }

    #[test]
    fn mistakes_are_errors() {
        for (text, expected) in [
            ("version = 1\nclases = {}", "clases"),
            ("version = 1\n[classes]\nhealth = \"alow\"", "alow"),
            ("version = 2", "version"),
            ("version = 1\ndefault = \"allow\"", "classes.secret"),
            (
                "version = 1\n[scanner]\nmin_confidence = 2.0",
                "scanner.min_confidence",
            ),
            (
                "version = 1\n[[providers]]\nname = \"a\"\nendpoint = \"http://a.example\"\nmodel = \"m\"\nregion = \"eu\"",
                "endpoint",
            ),
            ("version = 1\n[tasks]\nmail = \"cloud\"", "tasks"),
            ("version = 1\n[logging]\nprompts = true", "prompts"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn no_policy_lets_nothing_out_and_the_schema_is_json() {
        let policy = Policy::local_only();
        assert!(
            DataClass::ALL
                .iter()
                .all(|class| policy.rule(*class) == Rule::LocalOnly)
        );
        assert!(policy.providers().is_empty());
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let keys: BTreeSet<&str> = schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        for key in [
            "version",
            "name",
            "currency",
            "quality_target",
            "default",
            "classes",
            "regions",
            "providers",
            "tasks",
            "budgets",
            "scanner",
            "offline",
            "logging",
        ] {
            assert!(keys.contains(key), "{key}");
        }
        assert_eq!(keys.len(), 13);
    }
}
