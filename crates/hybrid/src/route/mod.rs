//! Which place answers a request, decided before the first token, and why.

mod capability;
mod decide;
mod estimate;

pub use capability::{Calibration, CapabilityModel, ModelError, Outcome, Tier};
pub use decide::{
    Candidate, CandidateReceipt, Conditions, Lost, Needs, Receipt, Router, Task, TaskReceipt,
};
pub use estimate::{LatencyProfile, MovingQuantile, OutputLengths};
