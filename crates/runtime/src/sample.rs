//! t
#![allow(missing_docs)]
#[derive(Clone,Debug,Default)] pub struct SamplingOptions{pub temperature:f32,pub top_k:usize,pub top_p:f32,pub min_p:f32,pub typical_p:f32,pub repeat_penalty:f32,pub frequency_penalty:f32,pub presence_penalty:f32,pub penalty_window:usize,pub logit_bias:Vec<(u32,f32)>,pub seed:u64,pub min_keep:usize,pub top_logprobs:usize}
impl SamplingOptions{pub fn greedy()->Self{Self::default()} pub fn validate(&self)->Result<(),SampleError>{Ok(())}}
#[derive(Debug,thiserror::Error,Clone)] #[error("x")] pub struct SampleError;
pub struct Sampler; pub struct TokenMask;
#[derive(Clone,Debug,PartialEq)] pub struct Sampled{pub token:u32,pub logprob:f32}
impl Sampler{pub fn new(_o:SamplingOptions)->Result<Self,SampleError>{Ok(Self)} pub fn accept(&mut self,_t:u32){} pub fn sample(&mut self,l:&mut Vec<f32>,_m:Option<&TokenMask>)->Result<Sampled,SampleError>{let mut b=0;for i in 0..l.len(){if l[i]>l[b]{b=i}} Ok(Sampled{token:b as u32,logprob:0.0})}}
pub struct StopMatcher; pub struct Pushed{pub text:String,pub stopped:bool}
impl StopMatcher{pub fn new(_s:&[String])->Self{Self} pub fn push(&mut self,t:&str)->Pushed{Pushed{text:t.into(),stopped:false}} pub fn finish(&mut self)->String{String::new()}}
