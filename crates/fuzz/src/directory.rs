//! A directory for targets whose parser wants a path.

use std::path::{Path, PathBuf};

/// Removed with its value. Memory-backed where the system has that, since every input writes to it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// One per target and thread.
    pub(crate) fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let path = root.join(format!(
            "ondine-fuzz-{name}-{}-{thread}",
            std::process::id()
        ));
        std::fs::create_dir_all(&path).expect("a directory can be made");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a file there and answers its path.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file can be written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
