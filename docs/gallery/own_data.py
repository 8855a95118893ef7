"""# Own data"""
# %%
# Text
print(1)
