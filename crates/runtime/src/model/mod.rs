//! What a model is: its shape, its layers and the names of its tensors, for every architecture.

mod arch;
mod builder;
mod spec;

pub use arch::{ARCHITECTURES, model_spec};
pub use spec::{
    Activation, Attention, Experts, FeedForward, GatedFeedForward, Layer, Linear, Mixer, ModelSpec,
    Norm, NormKind, QueryKeyNorm, Rope, RopeFactors, RopeStyle, ShortConvolution,
};
