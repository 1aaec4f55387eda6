//! t
use crate::{Limits,gguf::{ModelFile,ModelFileError}}; use std::path::Path;
pub(crate) fn open(p:&Path,_l:&Limits)->Result<ModelFile,ModelFileError>{Err(ModelFileError::Invalid{file:p.display().to_string(),what:"hf".into()})}
