//! Why bytes cannot become a matrix.

use crate::TensorType;

/// Why bytes cannot be decoded or packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A row does not fill whole blocks of its type.
    #[error("rows of {columns} elements do not fill whole blocks of {ty}: convert the model again")]
    PartialBlock {
        /// The element format.
        ty: TensorType,
        /// Elements of a row.
        columns: usize,
    },
    /// There are more or fewer bytes than the shape needs.
    #[error("{actual} bytes of {ty} where the shape needs {expected}: the file may be cut short")]
    Length {
        /// The element format.
        ty: TensorType,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A matrix of this shape does not fit into an address space.
    #[error("a matrix of {rows} x {columns} is too large: the file's shape may be damaged")]
    TooLarge {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// There is no such row.
    #[error("row {row} of a matrix of {rows} rows: use a smaller index")]
    NoSuchRow {
        /// The row asked for.
        row: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// Numbers cannot be written in this format here.
    #[error("numbers cannot be quantised to {0} here: use Q8_0 or Q4_0")]
    CannotQuantize(TensorType),
    /// Matrices of this format cannot be split into halves of their codes.
    #[error("a matrix of {0} has no split form: use the interleaved one")]
    NoSplitForm(TensorType),
    /// The bytes of a split matrix do not begin where numbers can be read.
    #[error("a split matrix of {0} must begin at a multiple of 4 bytes: align its storage")]
    Misaligned(TensorType),
    /// The memory for a matrix cannot be had.
    #[error("no memory for {0} bytes of weights: close other programs or use a smaller model")]
    OutOfMemory(usize),
}
