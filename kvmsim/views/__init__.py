"""What people look at: `kvmsim top` and `kvmsim report`.

watching     a VM that runs, asked through its monitor, and the store's pool
page_map     guest memory as letters
vm_view      what top shows, as lines
top_command  kvmsim top
"""
