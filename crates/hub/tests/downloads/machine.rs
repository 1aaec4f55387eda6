//! A machine for one test: its cache, its registry, and what the hub reported.

use ondine_hub::{
    Event, Hub, HubError, HuggingFaceSettings, Limits, Phase, Progress, Resolved, Retry, Settings,
    Timeouts,
};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A cache in a temporary directory and settings without patience.
pub struct Machine {
    pub directory: tempfile::TempDir,
    pub settings: Settings,
}

impl Machine {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let settings = settings_in(directory.path());
        Self {
            directory,
            settings,
        }
    }

    /// A machine whose registry has one further model, `m`, with these lines.
    pub fn with_model(lines: &str) -> Self {
        let machine = Self::new();
        machine.set_model(lines);
        machine
    }

    /// A machine whose model `m` has this content and these sources.
    pub fn with_content(content: &[u8], sources: &[String]) -> Self {
        Self::with_model(&model_lines(content, sources))
    }

    pub fn set_model(&self, lines: &str) {
        let text = format!("[[model]]\nname='m'\nfile='m.gguf'\nlicence='MIT'\n{lines}\n");
        std::fs::write(self.directory.path().join("registry.toml"), text).expect("a registry");
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.settings.clone()).expect("the registry is right")
    }

    /// Pulls `m` and checks its content.
    pub fn pull(&self, content: &[u8]) -> (Resolved, Log) {
        let (result, log) = self.try_pull();
        let resolved = result.unwrap_or_else(|error| panic!("{error}"));
        let found = std::fs::read(&resolved.path).expect("the file is there");
        assert!(found == content, "another content than the server's");
        (resolved, log)
    }

    pub fn try_pull(&self) -> (Result<Resolved, HubError>, Log) {
        let log = Log::default();
        (self.hub().pull("m", false, &log), log)
    }

    /// The error of a pull that must fail, as text.
    pub fn pull_error(&self) -> String {
        self.try_pull()
            .0
            .expect_err("nothing right to pull")
            .to_string()
    }

    /// Names of the files of `m` in the cache, without the lock.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.model_directory())
            .into_iter()
            .flatten();
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "lock")
            .collect();
        names.sort();
        names
    }

    /// The only partial download.
    pub fn part(&self) -> PathBuf {
        let mut parts = self.files();
        parts.retain(|name| name.ends_with(".part"));
        assert_eq!(parts.len(), 1, "{:?}", self.files());
        self.model_directory().join(&parts[0])
    }

    pub fn model_directory(&self) -> PathBuf {
        self.settings.home.join("models").join("m")
    }
}

/// Settings for a cache in `directory`, its registry beside it, and nothing of the real machine.
pub fn settings_in(directory: &Path) -> Settings {
    let registry = directory.join("registry.toml");
    if !registry.exists() {
        std::fs::write(&registry, "").expect("a registry");
    }
    let long = Duration::from_secs(10);
    Settings {
        home: directory.join("home"),
        registry_file: Some(registry),
        offline: false,
        hugging_face: HuggingFaceSettings {
            endpoint: None,
            token: None,
            cache: None,
            offline: false,
        },
        pip_commands: Vec::new(),
        timeouts: Timeouts {
            connect: long,
            response: long,
            idle: long,
            pip_idle: Duration::from_secs(60),
            lock: long,
        },
        retry: Retry {
            fruitless: 3,
            total: 6,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(5),
        },
        limits: Limits::default(),
    }
}

/// Registry lines that state content and sources.
pub fn model_lines(content: &[u8], sources: &[String]) -> String {
    format!(
        "sha256='{}'\nsize={}\nsources={sources:?}",
        sha256(content),
        content.len()
    )
}

pub fn sha256(content: &[u8]) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `length` bytes that look random and are the same every time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = 2 * seed + 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// What the hub reported.
#[derive(Default)]
pub struct Log {
    lines: Mutex<Vec<String>>,
    /// Ends the work once this many bytes are done; 0 never does.
    cancel_after: u64,
    done: AtomicU64,
}

impl Log {
    /// Ends the work as soon as bytes have come.
    pub fn cancelling() -> Self {
        Self {
            cancel_after: 1,
            ..Self::default()
        }
    }

    pub fn has(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    pub fn text(&self) -> String {
        self.lines.lock().expect("no test panicked").join("\n")
    }
}

impl Progress for Log {
    fn event(&self, event: Event<'_>) {
        let line = match event {
            Event::Trying { source } => format!("trying {source}"),
            Event::Started { phase, total, done } => {
                if phase == Phase::Download {
                    self.done.store(done, Ordering::SeqCst);
                }
                format!("started {phase:?} {total:?} {done}")
            }
            Event::Advanced { done } => {
                self.done.store(done, Ordering::SeqCst);
                format!("advanced {done}")
            }
            Event::Retrying { reason, after } => format!("retrying after {after:?}: {reason}"),
            Event::SourceFailed { source, reason } => format!("failed {source}: {reason}"),
            Event::Waiting => "waiting".to_string(),
            Event::Note(text) => format!("note {text}"),
            Event::Finished => "finished".to_string(),
            _ => "something else".to_string(),
        };
        self.lines.lock().expect("no test panicked").push(line);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel_after > 0 && self.done.load(Ordering::SeqCst) >= self.cancel_after
    }
}
