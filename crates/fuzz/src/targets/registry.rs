//! A registry of models, and the sources in it.

use crate::Target;
use ondine_hub::{Registry, Source, WebAddress};

pub(super) const TARGET: Target = Target {
    name: "registry",
    run,
    words: &[
        "[[model]]",
        "[hugging_face]",
        "endpoint",
        "name",
        "file",
        "sha256",
        "unknown",
        "size",
        "licence",
        "sources",
        "https://",
        "http://127.0.0.1",
        "hf:",
        "pypi:",
        " + pypi:",
        "file:",
        "==",
        "..",
        "@",
    ],
    seeds,
};

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let base: WebAddress = "https://example.org/a/b".parse().expect("an address");
    if let Ok(joined) = base.join(text) {
        assert!(joined.is_encrypted(), "a redirect left encryption");
    }
    if let Ok(source) = text.parse::<Source>() {
        let again: Source = source.to_string().parse().expect("what was written");
        assert_eq!(source.to_string(), again.to_string());
    }
    match Registry::parse(text, Some(&base), "fuzz") {
        Ok(registry) => {
            for entry in registry.models() {
                assert!(!entry.file.contains(['/', '\\']) && !entry.file.starts_with('.'));
                assert_eq!(registry.find(&entry.name), Some(entry));
            }
            registry.suggest(text);
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        include_str!("../../../hub/registry.toml"),
        "[[model]]\nname='a'\nfile='a.gguf'\nlicence='MIT'\nsha256='unknown'\nsources=['file:a']\n",
        "https://example.org:443/a?b=c",
        "http://[::1]:80/a",
        "hf:org/repo/sub/file.gguf@refs/pr/1",
        "pypi:a==1.0!a/b.gguf + pypi:b==1!c",
        "file:///a/b",
        "//other.example/c#d",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
