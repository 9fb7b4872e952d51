"""Makes PEFT work on packed layers, with nothing registered by the user.

`transformers_qaig` imports `install` once PEFT is imported ([`transformers_qaig_autoload.when_imported`]).
"""
