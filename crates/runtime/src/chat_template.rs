//! t
#![allow(missing_docs)]
#[derive(Clone)] pub struct Message{r:String,c:String} impl Message{pub fn user(c:impl Into<String>)->Self{Self{r:"user".into(),c:c.into()}} pub fn system(c:impl Into<String>)->Self{Self{r:"system".into(),c:c.into()}} pub fn assistant(c:impl Into<String>)->Self{Self{r:"assistant".into(),c:c.into()}}}
pub struct ChatRequest(Vec<Message>); impl ChatRequest{pub fn new(m:Vec<Message>)->Self{Self(m)}}
#[derive(Debug,thiserror::Error,Clone)] #[error("x")] pub struct TemplateError;
pub struct SpecialTokens; impl SpecialTokens{pub fn new(_b:&str,_e:&str)->Self{Self}}
pub struct Family; pub fn fallback_for(_a:&str,_h:&dyn Fn(&str)->bool)->Family{Family}
pub struct ChatTemplate; impl ChatTemplate{pub fn from_source(_s:&str,_t:SpecialTokens)->Result<Self,TemplateError>{Ok(Self)} pub fn fallback(_f:Family,_t:SpecialTokens)->Result<Self,TemplateError>{Ok(Self)} pub fn is_fallback(&self)->bool{false} pub fn origin(&self)->String{String::new()}
pub fn render(&self,r:&ChatRequest)->Result<String,TemplateError>{let mut s=String::new(); for m in &r.0{s+=&format!("<|im_start|>{}\n{}<|im_end|>\n",m.r,m.c)} Ok(s+"<|im_start|>assistant\n")}}
