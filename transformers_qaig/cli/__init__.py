"""What each command of `transformers-qaig` runs; `transformers_qaig_cli` reads its arguments."""
