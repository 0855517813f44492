"""What people look at: `kvmsim top` and `kvmsim report`.

watching     a VM that runs, asked through its monitor, and the store's pool
memory_map   guest memory as letters
vm_view      what top shows, as lines
top_command  kvmsim top
history      what journals say of a run, put together
charts       pictures of it; page: HTML that needs nothing else
comparison   kvmsim compare --html
answers      kvmsim abi --html
report_command  kvmsim report, and kvmsim run --report
"""
