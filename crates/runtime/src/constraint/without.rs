//! The types of a build without constraints.

use std::sync::Arc;

use super::{ConstraintError, ConstraintSpec, Instance};
use crate::sample::TokenMask;
use crate::tokenizer::Tokenizer;

/// Cannot be made in a build without the feature `constraint`.
#[derive(Debug)]
pub enum ConstraintFactory {}

impl ConstraintFactory {
    /// Fails: this build has no constraints.
    ///
    /// # Errors
    /// Always [`ConstraintError::NotBuilt`].
    pub fn new(_: &Arc<Tokenizer>) -> Result<Self, ConstraintError> {
        Err(ConstraintError::NotBuilt)
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn build(&self, _: &ConstraintSpec) -> Result<Constraint, ConstraintError> {
        match *self {}
    }

    /// Cannot be called.
    pub fn instance(
        &self,
        _: &str,
        _: &mut (dyn FnMut(&serde_json::Value) -> bool + Send),
    ) -> Option<Instance> {
        match *self {}
    }
}

/// Cannot be made in a build without the feature `constraint`.
#[derive(Debug)]
pub enum Constraint {}

impl Constraint {
    /// Cannot be called.
    pub fn left_out(&self) -> &[&'static str] {
        match *self {}
    }

    /// Cannot be called.
    pub fn must_stop(&self) -> bool {
        match *self {}
    }

    /// Cannot be called.
    pub fn is_complete(&mut self) -> bool {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn mask_within(&mut self, _: usize, _: usize) -> Result<&TokenMask, ConstraintError> {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn closing_mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        match *self {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn commit(&mut self, _: u32) -> Result<(), ConstraintError> {
        match *self {}
    }
}
