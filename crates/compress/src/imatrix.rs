//! Importance matrices: the mean square of what each column of a matrix is multiplied with.
//!
//! The form is llama.cpp's: a GGUF file of type `imatrix` with, for each matrix, `NAME.in_sum2` (sums of squares,
//! [columns, matrices]) and `NAME.counts` (tokens, [1, matrices]).

use std::collections::BTreeMap;
use std::path::Path;

use ondine_kernels::TensorType;
use ondine_runtime::Limits;
use ondine_runtime::gguf::{HeaderWriter, ModelFile, TensorInfo};

use crate::CompressError;
use crate::quantize::write_atomically;

/// Sums of squares of the inputs of one tensor's matrices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// Columns of a matrix.
    pub columns: usize,
    /// Sums of squares, [matrices, columns].
    pub sums: Vec<f32>,
    /// Tokens seen, shape `[matrices]`.
    pub counts: Vec<f32>,
}

impl Importance {
    /// Mean squares of the input of matrix `index`; ones where no token was seen.
    pub fn mean(&self, index: usize) -> Vec<f32> {
        let count = self.counts.get(index).copied().unwrap_or(0.0);
        match self.sums.chunks_exact(self.columns.max(1)).nth(index) {
            Some(sums) if count > 0.0 => sums.iter().map(|sum| sum / count).collect(),
            _ => vec![1.0; self.columns],
        }
    }
}

/// The importance of all tensors of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportanceMatrix {
    /// By tensor name.
    pub tensors: BTreeMap<String, Importance>,
    /// Texts it was made of.
    pub datasets: Vec<String>,
    /// Windows that were computed.
    pub chunks: u32,
    /// Tokens of a window.
    pub chunk_tokens: u32,
}

impl ImportanceMatrix {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it is not an importance matrix in GGUF form, or damaged.
    pub fn read(path: &Path) -> Result<Self, CompressError> {
        let name = path.display();
        let file = ModelFile::open(path, &Limits::default())?;
        if file.metadata.string("general.type")? != Some("imatrix") {
            return Err(CompressError::Invalid(format!(
                "{name}: is not an importance matrix in GGUF form; make one with `ondine calibrate` or llama-imatrix"
            )));
        }
        let number = |key: &str| -> Result<u32, CompressError> {
            Ok(file.metadata.unsigned(key)?.unwrap_or(0) as u32)
        };
        let datasets = match file
            .metadata
            .array("imatrix.datasets")?
            .map(|array| array.strings())
        {
            Some(Some(names)) => names
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect(),
            _ => Vec::new(),
        };
        let mut tensors = BTreeMap::new();
        for sums in file.tensors() {
            let Some(base) = sums.name.strip_suffix(".in_sum2") else {
                continue;
            };
            let counts = file.tensor(&format!("{base}.counts")).ok_or_else(|| {
                CompressError::Invalid(format!("{name}: has no counts for `{base}`; make it again"))
            })?;
            let (columns, matrices) = (sums.columns() as usize, sums.rows() as usize);
            let importance = Importance {
                columns,
                sums: floats(&file, sums)?,
                counts: floats(&file, counts)?,
            };
            let mut numbers = importance.sums.iter().chain(&importance.counts);
            if importance.counts.len() != matrices || !numbers.all(|x| x.is_finite() && *x >= 0.0) {
                return Err(CompressError::Invalid(format!(
                    "{name}: `{base}` holds numbers that no sum of squares can be; make it again"
                )));
            }
            tensors.insert(base.to_owned(), importance);
        }
        Ok(ImportanceMatrix {
            tensors,
            datasets,
            chunks: number("imatrix.chunk_count")?,
            chunk_tokens: number("imatrix.chunk_size")?,
        })
    }

    /// Writes the file at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CompressError> {
        let mut header = HeaderWriter::new();
        header.string("general.type", "imatrix");
        header.string_array("imatrix.datasets", &self.datasets);
        header.u32("imatrix.chunk_count", self.chunks);
        header.u32("imatrix.chunk_size", self.chunk_tokens);
        let mut data = Vec::new();
        for (name, importance) in &self.tensors {
            let matrices = importance.counts.len() as u64;
            let parts = [
                ("in_sum2", importance.columns as u64, &importance.sums),
                ("counts", 1, &importance.counts),
            ];
            for (kind, columns, numbers) in parts {
                let bytes = 4 * numbers.len() as u64;
                let name = format!("{name}.{kind}");
                header.tensor(&name, &[columns, matrices], TensorType::F32 as u32, bytes);
                data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                data.resize(data.len().next_multiple_of(32), 0);
            }
        }
        let mut bytes = header.finish();
        bytes.extend_from_slice(&data);
        write_atomically(path, |out| {
            out.write_all(&bytes).map_err(|source| CompressError::Io {
                path: path.display().to_string(),
                source,
            })
        })
    }
}

fn floats(file: &ModelFile, tensor: &TensorInfo) -> Result<Vec<f32>, CompressError> {
    if tensor.tensor_type != TensorType::F32 {
        return Err(CompressError::Invalid(format!(
            "tensor `{}` of an importance matrix is not F32; make it again",
            tensor.name
        )));
    }
    let source = file.source(tensor);
    let mut raw = vec![0; tensor.bytes as usize];
    source
        .read_at(tensor.offset, &mut raw)
        .map_err(|error| CompressError::Io {
            path: source.name().to_owned(),
            source: error,
        })?;
    let numbers = raw.as_chunks::<4>().0.iter();
    Ok(numbers.map(|raw| f32::from_le_bytes(*raw)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("imatrix.gguf");
        let mut matrix = ImportanceMatrix {
            datasets: vec!["text".into()],
            chunks: 3,
            chunk_tokens: 512,
            ..ImportanceMatrix::default()
        };
        let importance = Importance {
            columns: 3,
            sums: vec![1.0, 2.0, 4.0, 0.0, 0.0, 0.0],
            counts: vec![2.0, 0.0],
        };
        matrix
            .tensors
            .insert("blk.0.ffn_down_exps.weight".into(), importance);
        matrix.write(&path).unwrap();
        let read = ImportanceMatrix::read(&path).unwrap();
        assert_eq!(read, matrix);
        let importance = &read.tensors["blk.0.ffn_down_exps.weight"];
        assert_eq!(importance.mean(0), [0.5, 1.0, 2.0]);
        // An expert that no token reached weighs all columns alike.
        assert_eq!(importance.mean(1), [1.0; 3]);
    }

    #[test]
    fn other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, ondine_fixtures::Tiny::new("llama", 1).gguf()).unwrap();
        let error = ImportanceMatrix::read(&path).unwrap_err().to_string();
        assert!(error.contains("not an importance matrix"), "{error}");
    }
}
