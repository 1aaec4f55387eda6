//! t
#![allow(missing_docs)]
use crate::tokenizer::Tokenizer; use std::sync::Arc;
pub enum Constraint{} #[derive(Debug,thiserror::Error,Clone)] #[error("x")] pub struct ConstraintError;
pub enum ConstraintSpec{JsonSchema(String),AnyJson,Regex(String),Lark(String)}
impl Constraint{pub fn must_stop(&self)->bool{false} pub fn is_complete(&self)->bool{false} pub fn mask(&mut self)->Result<&crate::sample::TokenMask,ConstraintError>{Err(ConstraintError)} pub fn commit(&mut self,_t:u32)->Result<(),ConstraintError>{Ok(())}}
pub struct ConstraintFactory; impl ConstraintFactory{pub fn new(_t:&Arc<Tokenizer>)->Result<Self,ConstraintError>{Ok(Self)} pub fn build(&self,_s:&ConstraintSpec)->Result<Constraint,ConstraintError>{Err(ConstraintError)}}
