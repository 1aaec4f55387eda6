//! What this machine allows and where it keeps things; read from the environment once.

use crate::error::HubError;
use crate::source::WebAddress;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Everything about the machine that a [`crate::Hub`] needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Root of the cache; models live in `home/models/<name>/`.
    pub home: PathBuf,
    /// A further registry file, whose entries are added to the built-in ones or replace them.
    pub registry_file: Option<PathBuf>,
    /// Forbids every network use.
    pub offline: bool,
    /// The Hugging Face side.
    pub hugging_face: HuggingFaceSettings,
    /// Commands that run pip, tried in order; each is a program and its first arguments.
    pub pip_commands: Vec<Vec<OsString>>,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// How often to try again.
    pub retry: Retry,
    /// How much to accept.
    pub limits: Limits,
}

/// How Hugging Face repositories are reached.
#[derive(Clone)]
pub struct HuggingFaceSettings {
    /// Replaces the registry's endpoint: a mirror (`HF_ENDPOINT`).
    pub endpoint: Option<WebAddress>,
    /// Bearer token, sent to the endpoint's origin and nowhere else (`HF_TOKEN`).
    pub token: Option<String>,
    /// The cache that other tools share, looked at before any download.
    pub cache: Option<PathBuf>,
    /// Forbids network use for this kind of source (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// Patience.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the head of a response.
    pub response: Duration,
    /// Longest silence in the middle of a body.
    pub idle: Duration,
    /// Longest time in which pip writes nothing.
    pub pip_idle: Duration,
    /// Longest wait for another process that downloads the same model.
    pub lock: Duration,
}

/// Persistence.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Tries in a row that may bring no byte before a source is given up.
    pub fruitless: u32,
    /// Tries in all for one source.
    pub total: u32,
    /// The first pause; it doubles with each fruitless try.
    pub first_pause: Duration,
    /// The longest pause, also when the server asks for more.
    pub longest_pause: Duration,
}

/// Bounds on what is read from outside.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a model whose size the registry does not state.
    pub model_bytes: u64,
    /// Bytes of a registry file or a record.
    pub registry_bytes: u64,
    /// Redirects in a row.
    pub redirects: u32,
}

impl Settings {
    /// Reads `ONDINE_HOME`, `ONDINE_REGISTRY`, `ONDINE_OFFLINE`, `ONDINE_PIP`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::InvalidSetting`] for a value that cannot be used, or when no home directory is known.
    pub fn from_environment() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    pub(crate) fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HubError> {
        let home = match variable("ONDINE_HOME") {
            Some(home) => absolute(PathBuf::from(home)),
            None => platform_cache(&variable)
                .map(|cache| cache.join("ondine"))
                .ok_or(HubError::InvalidSetting {
                    variable: "ONDINE_HOME",
                    why: "it is not set and no home directory is known; set it to a directory"
                        .to_string(),
                })?,
        };
        let pip_commands = match variable("ONDINE_PIP") {
            Some(program) => vec![vec![program]],
            None => [
                &["python3", "-m", "pip"][..],
                &["python", "-m", "pip"],
                &["pip3"],
                &["pip"],
            ]
            .iter()
            .map(|command| command.iter().map(OsString::from).collect())
            .collect(),
        };
        Ok(Self {
            home,
            registry_file: variable("ONDINE_REGISTRY")
                .map(PathBuf::from)
                .or_else(|| default_registry_file(&variable)),
            offline: is_set(variable("ONDINE_OFFLINE")),
            hugging_face: HuggingFaceSettings::from_variables(&variable)?,
            pip_commands,
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            limits: Limits::default(),
        })
    }
}

impl HuggingFaceSettings {
    fn from_variables(variable: &impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let invalid = |variable, why| HubError::InvalidSetting { variable, why };
        let endpoint = match variable("HF_ENDPOINT") {
            None => None,
            Some(text) => {
                let text = text
                    .into_string()
                    .map_err(|_| invalid("HF_ENDPOINT", "it is not UTF-8".to_string()))?;
                Some(
                    text.trim_end_matches('/')
                        .parse()
                        .map_err(|why| invalid("HF_ENDPOINT", why))?,
                )
            }
        };
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            cache
                .or_else(|| user_home(variable).map(|home| home.join(".cache")))
                .map(|cache| cache.join("huggingface"))
        });
        let token_file = variable("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join("token")));
        let token = match variable("HF_TOKEN") {
            Some(token) => token.into_string().ok(),
            None => token_file.and_then(|path| std::fs::read_to_string(path).ok()),
        };
        let token = token
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| {
            token.len() > 1024 || !token.bytes().all(|byte| byte.is_ascii_graphic())
        }) {
            return Err(invalid(
                "HF_TOKEN",
                "a token has printable ASCII characters only".to_string(),
            ));
        }
        Ok(Self {
            endpoint,
            token,
            cache: variable("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| home.map(|home| home.join("hub"))),
            offline: is_set(variable("HF_HUB_OFFLINE")),
        })
    }
}

impl std::fmt::Debug for HuggingFaceSettings {
    /// Without the token.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("HuggingFaceSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish()
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            pip_idle: Duration::from_secs(300),
            lock: Duration::from_secs(3600),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            fruitless: 4,
            total: 50,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            model_bytes: 64 << 30,
            registry_bytes: 1 << 20,
            redirects: 8,
        }
    }
}

fn is_set(value: Option<OsString>) -> bool {
    value.is_some_and(|value| {
        !matches!(
            value.to_string_lossy().to_ascii_lowercase().as_str(),
            "0" | "false" | "no" | "off"
        )
    })
}

/// Relative paths would move the cache with the working directory.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn user_home(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let name = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    variable(name).map(PathBuf::from)
}

fn platform_cache(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(cache) = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
    {
        return Some(cache);
    }
    if cfg!(windows) {
        return variable("LOCALAPPDATA").map(PathBuf::from);
    }
    let inside = if cfg!(target_os = "macos") {
        "Library/Caches"
    } else {
        ".cache"
    };
    user_home(variable).map(|home| home.join(inside))
}

/// `ondine/registry.toml` in the user's configuration directory, if it is there.
fn default_registry_file(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let configuration = if cfg!(windows) {
        variable("APPDATA").map(PathBuf::from)
    } else {
        let set = variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        set.or_else(|| user_home(variable).map(|home| home.join(".config")))
    };
    configuration
        .map(|directory| directory.join("ondine").join("registry.toml"))
        .filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from_variables(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn reads_the_environment() {
        let settings = settings(&[
            ("ONDINE_HOME", "/cache"),
            ("HF_ENDPOINT", "https://mirror.example/hf/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HOME", "/hf"),
            ("HF_HUB_OFFLINE", "1"),
            ("ONDINE_OFFLINE", "0"),
        ])
        .unwrap();
        assert_eq!(settings.home, PathBuf::from("/cache"));
        assert_eq!(
            settings.hugging_face.endpoint.as_ref().unwrap().as_str(),
            "https://mirror.example/hf"
        );
        assert_eq!(settings.hugging_face.token.as_deref(), Some("secret"));
        assert_eq!(settings.hugging_face.cache, Some(PathBuf::from("/hf/hub")));
        assert!(settings.hugging_face.offline && !settings.offline);
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn refuses_settings_that_leak_or_lead_nowhere() {
        assert!(settings(&[]).is_err());
        assert!(settings(&[("HOME", "/h"), ("HF_ENDPOINT", "http://mirror.example")]).is_err());
        assert!(settings(&[("HOME", "/h"), ("HF_TOKEN", "a\r\nX-Evil: 1")]).is_err());
        assert!(settings(&[("HOME", "/h")]).is_ok());
    }
}
