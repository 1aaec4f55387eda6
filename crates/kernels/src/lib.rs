//! Quantised block formats, packed layouts and compute kernels per instruction set.

mod tensor_type;

pub use tensor_type::TensorType;
