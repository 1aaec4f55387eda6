//! Where a vendor runtime's library is: a variable, the installed Python wheel, or the system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ondine_runtime::backend::Unavailable;

/// How to find a library.
pub struct Search {
    /// What it is called in messages.
    pub title: &'static str,
    /// Names a file, or a directory that holds one.
    pub variable: &'static str,
    /// The Python package that ships it, and the directory inside.
    pub package: &'static str,
    /// Directory of the libraries inside the package.
    pub inside: &'static str,
    /// Beginning of the file's name, such as `libonnxruntime.so`.
    pub file: &'static str,
}

/// Directories in which systems keep libraries.
const SYSTEM: [&str; 6] = [
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/intel/openvino/runtime/lib/intel64",
];

impl Search {
    /// The library's file.
    ///
    /// # Errors
    /// [`Unavailable::NotPresent`] with what to do.
    pub fn find(&self) -> Result<PathBuf, Unavailable> {
        if let Some(named) = std::env::var_os(self.variable).filter(|named| !named.is_empty()) {
            let named = PathBuf::from(named);
            return self.in_place(&named).ok_or_else(|| {
                Unavailable::NotPresent(format!(
                    "{}: {} is neither {}… nor a directory that holds it",
                    self.variable,
                    named.display(),
                    self.file
                ))
            });
        }
        let wheel = self.wheel().and_then(|path| self.in_place(&path));
        let system = || SYSTEM.iter().find_map(|path| self.in_place(path.as_ref()));
        wheel.or_else(system).ok_or_else(|| {
            Unavailable::NotPresent(format!(
                "{} is not installed: pip install {}, or name its library in {}",
                self.title, self.package, self.variable
            ))
        })
    }

    /// `path` itself if it is a file; of a directory the library in it.
    fn in_place(&self, path: &Path) -> Option<PathBuf> {
        if path.is_file() {
            return Some(path.to_owned());
        }
        let mut found: Vec<PathBuf> = [path.to_owned(), path.join(self.inside)]
            .iter()
            .filter_map(|directory| std::fs::read_dir(directory).ok())
            .flatten()
            .filter_map(|item| Some(item.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().map(|name| name.to_string_lossy());
                name.is_some_and(|name| name.starts_with(self.file))
            })
            .collect();
        found.sort();
        found.into_iter().next()
    }

    /// Where Python would import the package from; asks without importing it.
    fn wheel(&self) -> Option<PathBuf> {
        let program = format!(
            "import importlib.util as u; s = u.find_spec('{}'); print(list(s.submodule_search_locations)[0] if s else '')",
            self.package
        );
        let output = Command::new("python3")
            .args(["-c", &program])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        match path.trim() {
            "" => None,
            path => Some(PathBuf::from(path)),
        }
    }
}
