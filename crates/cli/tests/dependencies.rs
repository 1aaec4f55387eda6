//! Every dependency has a licence that `deny.toml` allows and comes from a registry. Only what `cargo metadata` knows is
//! checked; `cargo deny` also reads the licence files.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn every_dependency_is_licensed_as_deny_toml_allows() {
    let allowed = Allowed::read(&workspace().join("deny.toml"));
    let mut checked = 0;
    let mut wrong = Vec::new();
    for package in foreign_packages() {
        let name = package["name"].as_str().unwrap_or_default();
        let version = package["version"].as_str().unwrap_or_default();
        match package["license"].as_str() {
            Some(expression) if allowed.accepts(name, expression) => checked += 1,
            Some(expression) => wrong.push(format!("{name} {version}: {expression}")),
            None => wrong.push(format!("{name} {version}: no licence is stated")),
        }
    }
    assert!(wrong.is_empty(), "not allowed by deny.toml: {wrong:#?}");
    assert!(
        checked > 20,
        "only {checked} dependencies were found: the test looks at the wrong place"
    );
}

#[test]
fn no_dependency_comes_from_a_repository() {
    for package in foreign_packages() {
        let source = package["source"].as_str().unwrap_or_default();
        assert!(
            source.starts_with("registry+") || source.starts_with("sparse+"),
            "{} comes from {source}",
            package["name"]
        );
    }
}

#[test]
fn expressions_mean_what_spdx_says() {
    let allowed = Allowed {
        licences: ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
            .map(String::from)
            .to_vec(),
        exceptions: vec![(
            "certificates".to_string(),
            "CDLA-Permissive-2.0".to_string(),
        )],
    };
    for expression in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "(MIT OR GPL-3.0) AND ISC",
        "GPL-2.0 AND GPL-3.0 OR MIT",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allowed.accepts("a", expression), "{expression}");
    }
    for expression in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "MIT AND (GPL-2.0 OR GPL-3.0)",
        "Apache-2.0",
        "MIT WITH LLVM-exception",
        "(MIT",
        "MIT)",
        "MIT OR",
        "CDLA-Permissive-2.0",
    ] {
        assert!(!allowed.accepts("a", expression), "{expression}");
    }
    assert!(allowed.accepts("certificates", "CDLA-Permissive-2.0"));
}

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../..")
        .canonicalize()
        .expect("the workspace is two folders up")
}

/// Every package that is not part of this workspace: of all platforms if they were all fetched, else of this one.
fn foreign_packages() -> Vec<Value> {
    let host = host_platform();
    let everything = ["--all-features"];
    let this_platform = ["--all-features", "--filter-platform", &host];
    let mut failure = String::new();
    for arguments in [&everything[..], &this_platform[..]] {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline", "--locked"])
            .args(arguments)
            .current_dir(workspace())
            .output()
            .expect("cargo starts");
        if !output.status.success() {
            failure = String::from_utf8_lossy(&output.stderr).into_owned();
            continue;
        }
        let metadata: Value =
            serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
        let packages = metadata["packages"].as_array().expect("a list of packages");
        return packages
            .iter()
            .filter(|package| !package["source"].is_null())
            .cloned()
            .collect();
    }
    panic!("cargo metadata failed: {failure}")
}

/// The name of this platform, as the compiler writes it.
fn host_platform() -> String {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .expect("rustc starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_string()
}

/// What `deny.toml` allows.
struct Allowed {
    licences: Vec<String>,
    /// Package and the licence that is allowed for it alone.
    exceptions: Vec<(String, String)>,
}

impl Allowed {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("deny.toml is there");
        let table: toml::Table = text.parse().expect("deny.toml is TOML");
        let strings = |value: &toml::Value| -> Vec<String> {
            let list = value.as_array().expect("a list");
            list.iter()
                .map(|item| item.as_str().expect("a string").to_string())
                .collect()
        };
        let exceptions = table["licenses"]["exceptions"].as_array().expect("a list");
        let exceptions = exceptions.iter().flat_map(|exception| {
            let package = exception["crate"].as_str().expect("a name");
            let licences = strings(&exception["allow"]).into_iter();
            licences.map(move |licence| (package.to_string(), licence))
        });
        Self {
            licences: strings(&table["licenses"]["allow"]),
            exceptions: exceptions.collect(),
        }
    }

    /// Whether one may use the package under the allowed licences alone (SPDX 2.3, annex D; `/` is an older way to write OR).
    fn accepts(&self, package: &str, expression: &str) -> bool {
        let spaced = expression
            .replace('/', " OR ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut reader = Reader {
            allowed: self,
            package,
            words: &words,
        };
        reader.either() == Some(true) && reader.words.is_empty()
    }
}

/// Reads an expression from left to right; `None` where it is malformed.
struct Reader<'a> {
    allowed: &'a Allowed,
    package: &'a str,
    words: &'a [&'a str],
}

impl Reader<'_> {
    fn either(&mut self) -> Option<bool> {
        let mut accepted = self.both()?;
        while self.take("OR") {
            accepted |= self.both()?;
        }
        Some(accepted)
    }

    fn both(&mut self) -> Option<bool> {
        let mut accepted = self.one()?;
        while self.take("AND") {
            accepted &= self.one()?;
        }
        Some(accepted)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let accepted = self.either()?;
            return self.take(")").then_some(accepted);
        }
        let mut licence = self.next()?.to_string();
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.next()?);
        }
        let is_exception =
            |(package, allowed): &(String, String)| package == self.package && *allowed == licence;
        Some(
            self.allowed.licences.contains(&licence)
                || self.allowed.exceptions.iter().any(is_exception),
        )
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn next(&mut self) -> Option<&str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        (!matches!(*first, "AND" | "OR" | "WITH" | "(" | ")")).then_some(*first)
    }
}
