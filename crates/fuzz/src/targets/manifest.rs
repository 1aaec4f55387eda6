//! A bundle's manifest, and the paths in it.

use crate::Target;
use ondine_package::Limits;
use ondine_package::bundle::{FileEntry, Manifest, Parent, Role, RuntimeVersion};
use ondine_package::digest::Digest;
use ondine_package::path::BundlePath;
use std::path::Path;

pub(super) const TARGET: Target = Target {
    name: "manifest",
    run,
    words: &[
        "\"files\":",
        "\"path\":",
        "\"role\":",
        "\"size\":",
        "\"sha256\":",
        "\"blake3\":",
        "\"parents\":",
        "\"minimum_runtime\":",
        "\"version\":",
        "\"name\":",
        "..",
        "\\u002e",
        "\u{202e}",
        "18446744073709551615",
        "1e3",
        "-0",
    ],
    seeds,
};

fn run(bytes: &[u8]) {
    match Manifest::parse(bytes, &Limits::default()) {
        Ok(manifest) => {
            assert_eq!(manifest.to_json(), bytes, "one manifest, one spelling");
            for file in &manifest.files {
                let place = file.path.under(Path::new("root"));
                assert!(place.starts_with("root"));
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(path) = BundlePath::parse(text)
    {
        assert!(
            path.components()
                .all(|part| !matches!(part, "" | "." | ".."))
        );
        assert!(path.under(Path::new("root")).starts_with("root"));
        path.folded();
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let file = |path: &str, role| FileEntry {
        path: BundlePath::parse(path).expect("a path"),
        role,
        size: 7,
        blake3: Digest::blake3(b"weights"),
        sha256: Digest::sha256(b"weights"),
        sealed_header: None,
    };
    let bundle = |files, parents| Manifest {
        name: "acme/helper".to_owned(),
        version: 3,
        minimum_runtime: RuntimeVersion(0, 1, 0),
        files,
        parents,
    };
    let mut sealed = file("weights/größe-1.gguf", Role::Model);
    sealed.sealed_header = Some(Digest::blake3(b"header"));
    let parent = Parent {
        manifest: Digest::sha256(b"manifest"),
        version: 2,
    };
    let bundles = [
        bundle(vec![file("model.gguf", Role::Model)], Vec::new()),
        bundle(vec![sealed, file("a/LICENCE", Role::Licence)], vec![parent]),
    ];
    let mut seeds: Vec<Vec<u8>> = bundles
        .into_iter()
        .map(|bundle| bundle.checked(&Limits::default()).expect("right").to_json())
        .collect();
    seeds.push("weights/größe-1.bin".into());
    seeds
}
