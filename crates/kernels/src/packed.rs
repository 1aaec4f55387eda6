//! Matrices in the form that the kernels read.

use crate::{KernelError, TensorType, dequantize};

/// A matrix [rows, cols] in the form that the kernels read.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

/// Packs a matrix some rows at a time.
#[derive(Debug)]
pub struct PackedMatrixBuilder {
    matrix: PackedMatrix,
    expected: usize,
}

impl PackedMatrix {
    /// Starts a matrix of `rows` rows of `cols` elements.
    ///
    /// # Errors
    /// If a row does not fill whole blocks, or the shape is too large.
    pub fn builder(
        ty: TensorType,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrixBuilder, KernelError> {
        let row_bytes = ty
            .row_bytes(cols)
            .ok_or(KernelError::PartialBlock { ty, columns: cols })?;
        let too_large = KernelError::TooLarge {
            rows,
            columns: cols,
        };
        let expected = rows.checked_mul(row_bytes).ok_or(too_large)?;
        Ok(PackedMatrixBuilder {
            matrix: PackedMatrix {
                ty,
                rows,
                cols,
                row_bytes,
                bytes: Vec::new(),
            },
            expected,
        })
    }

    /// Packs a whole matrix; `raw` are its rows as in a GGUF file.
    ///
    /// # Errors
    /// As [`builder`](Self::builder), and if `raw` has another length than the shape needs.
    pub fn pack(
        ty: TensorType,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> Result<PackedMatrix, KernelError> {
        let mut builder = Self::builder(ty, rows, cols)?;
        builder.push_rows(raw)?;
        builder.finish()
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The format that the matrix had in the file.
    pub fn tensor_type(&self) -> TensorType {
        self.ty
    }

    /// Writes row `row` as f32 to `out`, [cols].
    ///
    /// # Errors
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if row >= self.rows {
            return Err(KernelError::NoSuchRow {
                row,
                rows: self.rows,
            });
        }
        dequantize(
            self.ty,
            &self.bytes[row * self.row_bytes..][..self.row_bytes],
            out,
        )
    }
}

impl PackedMatrixBuilder {
    /// Appends whole rows, as in a GGUF file.
    ///
    /// # Errors
    /// If `raw` is not whole rows, or more rows come than the matrix has.
    pub fn push_rows(&mut self, raw: &[u8]) -> Result<(), KernelError> {
        let total = self.matrix.bytes.len() + raw.len();
        if total > self.expected
            || (self.matrix.row_bytes > 0 && !raw.len().is_multiple_of(self.matrix.row_bytes))
        {
            return Err(self.wrong_length(total));
        }
        self.matrix.bytes.extend_from_slice(raw);
        Ok(())
    }

    /// The matrix.
    ///
    /// # Errors
    /// If rows are missing.
    pub fn finish(self) -> Result<PackedMatrix, KernelError> {
        if self.matrix.bytes.len() != self.expected {
            return Err(self.wrong_length(self.matrix.bytes.len()));
        }
        Ok(self.matrix)
    }

    fn wrong_length(&self, actual: usize) -> KernelError {
        KernelError::Length {
            ty: self.matrix.ty,
            expected: self.expected,
            actual,
        }
    }
}
